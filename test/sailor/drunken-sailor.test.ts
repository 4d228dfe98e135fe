import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { parse } from 'yaml'
import { SAMPLE_SEED } from '../../src/sailor/dice.ts'
import { getMischief, listMischiefs } from '../../src/sailor/mischief.ts'
import { chooseMischief } from '../../src/sailor/voyage.ts'
import { finish, type Harbour, launch, openHarbour, PROJECT, until } from './launch.ts'

function makeJob(payload: unknown, attempt = 1): [Harbour, Record<string, string>] {
  const harbour = openHarbour()
  writeFileSync(join(harbour.dir, 'input.json'), typeof payload === 'string' ? payload : JSON.stringify(payload))
  return [harbour, { QWORKER_UUID: 'bc3a925099b9012e0f06549a20077664', QWORKER_ATTEMPT: String(attempt) }]
}

test.each([
  ['normal', 'Drunken Sailor: Normal execution.', 0],
  ['slow', 'Drunken Sailor: Slow execution.', 0],
  ['faulty', 'Drunken Sailor: Faulty execution.', 10],
])('%s says and exits what the ancestor did', async (outcome, line, code) => {
  const loud = await finish(['-s', '0', '-v', '--outcome', outcome])
  expect(loud).toMatchObject({ code, stdout: `Drunken sailor PID: ${loud.pid}\n${line}\n`, stderr: '' })
  const silent = await finish(['-s', '0', '--outcome', outcome])
  expect(silent).toMatchObject({ code, stdout: `Drunken sailor PID: ${silent.pid}\n`, stderr: '' })
})

test('the infinite loop says the ancestor’s line with its trailing blank, and at 0 seconds it burns no processor', async () => {
  const run = launch(['-s', '0', '-v', '--outcome', 'infinite-loop'], openHarbour())
  const readTicks = () => readFileSync(`/proc/${run.pid}/stat`, 'utf8').split(' ')[13]
  await until('the line', () => run.said.stdout.endsWith('Drunken Sailor: Infinite loop. \n'))
  let ticks: string | undefined
  await until(
    'a sleeping process',
    () => {
      const before = ticks
      ticks = readTicks()
      return before === ticks
    },
    200,
  )
  run.child.kill('SIGTERM')
  expect(await run.exited).toEqual([null, 'SIGTERM'])
  await run.closed
})

test('slow sleeps twice as long as normal', async () => {
  const timed = async (outcome: string) => {
    const start = performance.now()
    await finish(['-s', '0.5', '--outcome', outcome])
    return performance.now() - start
  }
  const [normal, slow] = await Promise.all([timed('normal'), timed('slow')])
  expect(normal).toBeGreaterThanOrEqual(500)
  expect(slow).toBeGreaterThanOrEqual(1000)
})

test('without a sleep time it asks for one and exits 255', async () => {
  expect(await finish(['-v'])).toMatchObject({
    code: 255,
    stdout: '',
    stderr: 'Please provide a sleep time value...\nGive -s SECONDS; drunken-sailor --help tells more\n',
  })
})

test('an unknown outcome exits 255 and names the near ones', async () => {
  const { code, stderr } = await finish(['-s', '0', '--outcome', 'slwo'])
  expect(code).toBe(255)
  expect(stderr).toMatch(
    /^Unknown dice value! All man abort ship!\nUnknown outcome "slwo"; did you mean slow\? drunken-sailor --list/,
  )
  expect((await finish(['-s', '0', '--outcome', 'sigterm'])).stderr).toContain('did you mean ignores-sigterm?')
})

test.each([
  [['-s', 'soon'], '--sleep'],
  [['-s', '-1'], '--sleep'],
  [['-s', '0', '--seed', '1.5'], '--seed'],
  [['-s', '0', '--attempt', '0'], '--attempt'],
  [['-s', '0', '--megabytes', '1000000'], '--megabytes'],
  [['-s', '0', '--sede', '1'], '--seed'],
  [['-s', '0', 'rum'], 'rum|arguments'],
])('the flags %j are a usage error', async (args, named) => {
  const { code, stdout, stderr } = await finish(args)
  expect({ code, stdout }).toEqual({ code: 64, stdout: '' })
  expect(stderr).toMatch(new RegExp(named))
})

test('the same seed makes the same voyage', async () => {
  const seeds = [1, 2, 3, 4, 5].filter((seed) => chooseMischief({ seed }, 1) !== 'infinite-loop')
  for (const seed of seeds) {
    const runs = [await finish(['-s', '0', '-v', '--seed', String(seed)]), await finish(['-vs0', `--seed=${seed}`])]
    for (const { stdout } of runs) expect(stdout).toContain(getMischief(chooseMischief({ seed }, 1)).line)
  }
})

test('the three attempts of the sample seed are the ancestor’s sample run', async () => {
  const args = ['-s', '0', '-v', '--seed', String(SAMPLE_SEED)]
  const first = launch(args, openHarbour())
  await until('the infinite loop', () => first.said.stdout.includes('Infinite loop. \n'))
  first.child.kill('SIGKILL')
  await first.closed
  const second = await finish(args, openHarbour(), { QWORKER_ATTEMPT: '2' })
  expect(second).toMatchObject({ code: 10, stdout: expect.stringContaining('Faulty execution.') })
  const third = await finish([...args, '--attempt', '3'], openHarbour(), { QWORKER_ATTEMPT: '2' })
  expect(third).toMatchObject({ code: 0, stdout: expect.stringContaining('Normal execution.') })
})

test('without a seed the outcomes differ from run to run', async () => {
  const lines = new Set<string>()
  while (lines.size < 2) {
    const run = launch(['-s', '0', '-v'], openHarbour())
    await until('two lines', () => run.said.stdout.split('\n').length === 3)
    lines.add(run.said.stdout.split('\n')[1]!)
    run.child.kill('SIGKILL')
    await run.closed
  }
})

test('--list has one line for each outcome, with its end', async () => {
  const { stdout, code } = await finish(['--list'])
  const lines = stdout.trimEnd().split('\n')
  expect(code).toBe(0)
  expect(lines.map((line) => line.split(' ')[0])).toEqual(listMischiefs(true))
  expect(lines[2]).toMatch(/exits 10$/)
  const rows = JSON.parse((await finish(['--list', '--json'])).stdout)
  expect(rows[2]).toEqual({
    name: 'faulty',
    description: 'fails at once',
    end: { kind: 'exits', code: 10 },
    leavesProcess: false,
  })
})

test('--help names the sample seed', async () => {
  const { stdout, code } = await finish(['--help'])
  expect(code).toBe(0)
  expect(stdout).toContain(`--seed ${SAMPLE_SEED} the first three attempts`)
})

test('as a job it takes its orders from the payload and ignores the keys of others', async () => {
  const [harbour, env] = makeJob({ foo: 'bar', 23: '42', payload: 'x', outcome: 'try-later', sleep: 0 })
  expect(await finish(['-v'], harbour, env)).toMatchObject({ code: 75 })
})

test('as a job with the ancestor’s payload it rolls the dice', async () => {
  const [harbour, env] = makeJob({ foo: 'bar', 23: '42', payload: 'x' }, 3)
  const { code, stdout, pid } = await finish(['-s', '0', '-v', '--seed', String(SAMPLE_SEED)], harbour, env)
  expect(stdout).toBe(`Drunken sailor PID: ${pid}\nDrunken Sailor: Normal execution.\n`)
  expect(code).toBe(0)
})

test('a job that is retried with one seed goes on with the voyage', async () => {
  const [harbour, env] = makeJob({ seed: SAMPLE_SEED }, 2)
  expect(await finish(['-s', '0'], harbour, env)).toMatchObject({ code: 10 })
})

test('what the job asks for wins over the flags of the manifest', async () => {
  const [harbour, env] = makeJob({ outcome: 'faulty', sleep: 0 })
  expect(await finish(['-s', '1000', '--outcome', 'infinite-loop'], harbour, env)).toMatchObject({ code: 10 })
})

test.each([
  [{ outcome: 'slwo' }, /"slwo"; did you mean slow\?/],
  [{ seed: 'seven' }, /"seed" must be a whole number from 0 on, not "seven"/],
  [{ wild: 1 }, /"wild" must be true or false, not 1/],
  [`{"sleep":${'['.repeat(30_000)}${']'.repeat(30_000)}}`, /"sleep" must be a number.*not a list/],
  ['{"seed":', /"payload" must be a JSON object/],
])('a job with a wrong value exits 65 and says why: %.40j', async (payload, complaint) => {
  const [harbour, env] = makeJob(payload)
  const { code, stdout, stderr } = await finish(['-s', '0'], harbour, env)
  expect({ code, stdout }).toEqual({ code: 65, stdout: '' })
  expect(stderr).toMatch(complaint)
  expect(stderr.trimEnd().split('\n')).toHaveLength(1)
})

test('outside of a job input.json is not read, and inside of one it must be there', async () => {
  const [harbour] = makeJob({ outcome: 'try-later' })
  expect(await finish(['-s', '0', '--outcome', 'normal'], harbour)).toMatchObject({ code: 0 })
  const lost = await finish(['-s', '0'], openHarbour(), { QWORKER_UUID: 'bc3a925099b9012e0f06549a20077664' })
  expect(lost).toMatchObject({ code: 66, stdout: '', stderr: expect.stringContaining('input.json') })
})

test('the manifest starts the sailor with the time of the job', async () => {
  const dir = join(PROJECT, 'algorithms/drunken_sailor')
  const manifest = parse(readFileSync(join(dir, 'algorithm.yaml'), 'utf8'))
  expect(manifest).toMatchObject({ name: 'drunken_sailor', output: 'auto' })
  const places: Record<string, string> = { node: process.execPath, dir, ttr: '0' }
  const [command, ...args] = manifest.command.map((word: string) =>
    word.replace(/\{(\w+)\}/g, (_, key) => places[key]!),
  )
  const [harbour, env] = makeJob({ seed: SAMPLE_SEED }, 3)
  const run = launch(args, harbour, env, command)
  expect(await run.exited).toEqual([0, null])
  await run.closed
  expect(run.said.stdout).toBe(`Drunken sailor PID: ${run.pid}\nDrunken Sailor: Normal execution.\n`)
})
