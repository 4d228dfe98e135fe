import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { terminalEnvironment } from '../../src/config.ts'
import { install, leaveOut, PROJECT } from '../support/installation.ts'

const ESC = '\u001b'
const RED = `${ESC}[31m`
const BIN = join(PROJECT, 'bin')

/** A rc file that is not there is complained of before anything else is done. */
const CALLS = [
  ['qproducer', '-a', 'pi', '-c', '/no/rc'],
  ['qworker', '-c', '/no/rc'],
]

function complaint(words: readonly string[], env: Record<string, string>): string {
  const [program = '', ...args] = words
  const { status, stdout, stderr } = spawnSync(join(BIN, program), args, {
    env: { PATH: process.env.PATH ?? '', ...env },
    encoding: 'utf8',
  })
  expect({ status, stdout }).toEqual({ status: 66, stdout: '' })
  return stderr
}

/** The same, with a terminal for stderr. */
function complaintOnTerminal(words: readonly string[], env: Record<string, string>): string {
  const line = words.map((word) => `'${word}'`).join(' ')
  const { stdout } = spawnSync('script', ['-qec', `${BIN}/${line.slice(1).replace("'", '')} >/dev/null`, '/dev/null'], {
    env: { PATH: process.env.PATH ?? '', TERM: 'xterm', SHELL: '/bin/sh', ...env },
    encoding: 'utf8',
  })
  return stdout
}

test.each(CALLS)('%s colours nothing that goes into a pipe, unless it is told to', (...words) => {
  const plain = complaint(words, {})
  expect(plain).toMatch(new RegExp(`^${words[0]}: /no/rc: no such file`))
  expect(complaint(words, { FORCE_COLOR: '0' })).toBe(plain)
  expect(complaint(words, { FORCE_COLOR: '' })).toBe(plain)
  expect(complaint([...words, '--color', 'auto'], {})).toBe(plain)
  for (const red of [
    complaint(words, { FORCE_COLOR: '1' }),
    complaint([...words, '--color'], { NO_COLOR: '1' }),
    complaint([...words, '--color', 'always'], { TERM: 'dumb' }),
  ]) {
    expect(red.startsWith(`${RED}${words[0]}:${ESC}[39m /no/rc: no such file`), JSON.stringify(red)).toBe(true)
  }
})

test('on a terminal there are colours, but not with NO_COLOR, --color never, or a terminal that has none', (context) => {
  if (spawnSync('script', ['-qec', 'true', '/dev/null']).status !== 0)
    leaveOut(context, 'colours on a terminal: there is no script(1) of util-linux here')
  for (const words of CALLS) {
    expect(complaintOnTerminal(words, {})).toContain(RED)
    expect(complaintOnTerminal(words, { NO_COLOR: '' })).toContain(RED)
    expect(complaintOnTerminal(words, { NO_COLOR: '1', FORCE_COLOR: '1' })).toContain(RED)
    expect(complaintOnTerminal([...words, '--color'], { NO_COLOR: '1' })).toContain(RED)
    for (const plain of [
      complaintOnTerminal(words, { NO_COLOR: '1' }),
      complaintOnTerminal(words, { NO_COLOR: '0' }),
      complaintOnTerminal(words, { FORCE_COLOR: '0' }),
      complaintOnTerminal(words, { TERM: 'dumb' }),
      complaintOnTerminal([...words, '--color', 'never'], { FORCE_COLOR: '1' }),
    ]) {
      expect(plain).toContain('no such file')
      expect(plain).not.toContain(ESC)
    }
  }
})

test('the environment tells whether colours are wanted', () => {
  expect(terminalEnvironment({})).toEqual({ noColor: false, forceColor: undefined, isDumb: false })
  expect(terminalEnvironment({ NO_COLOR: '0', FORCE_COLOR: '3', TERM: 'dumb' })).toEqual({
    noColor: true,
    forceColor: true,
    isDumb: true,
  })
  expect(terminalEnvironment({ NO_COLOR: '', FORCE_COLOR: 'false' })).toMatchObject({
    noColor: false,
    forceColor: false,
  })
})

test.each<[string, string[]]>([
  ['the short log', []],
  ['the log in full', ['-v']],
])('%s colours what a job came to; its uuid, and what its algorithm prints, steer nothing', async (_, args) => {
  const home = await install({ LOG_FORMAT: 'text', CONCURRENCY: '1', MAX_ATTEMPTS: '2' })
  home.addAlgorithm('ok', `printf '"\\033[31mred\\033[0m"'`, 'output: text\n')
  home.addAlgorithm('bad', 'exit 10')
  const good = await home.putJob('ok')
  const bad = await home.putJob('bad')
  const worker = await home.startWorker({}, ['--color', 'always', '--once', ...args])
  await worker.exited
  const failing = await home.startWorker({}, ['--color', 'always', ...args])
  await new Promise<void>((resolve) => {
    const look = () => failing.said.stdout.includes('(attempt 2 of 2)') && resolve()
    failing.child.stdout?.on('data', look)
    look()
  })
  await failing.stop()
  expect(home.status(good)?.state).toBe('complete')
  expect(home.status(bad)?.state).toBe('failed')
  const isVerbose = args.length > 0
  const [first, second] = [worker.said.stdout, failing.said.stdout]
  expect(first).toContain(
    isVerbose
      ? `\n${ESC}[32mJob completed, removing from queue.${ESC}[39m\n`
      : `\n${good} ok: ${ESC}[32mcomplete, removed from queue${ESC}[39m\n`,
  )
  if (isVerbose) expect(first).toContain('\n"?[31mred?[0m"\n')
  expect(second).toContain(
    isVerbose
      ? `\n${ESC}[33mJob failed, leaving job in queue.${ESC}[39m\n`
      : `\n${bad} bad: ${ESC}[33mreleased, next attempt in 0 s${ESC}[39m\n`,
  )
  expect(second).toMatch(
    isVerbose
      ? /\n\u001b\[31mJob failed, burying it: .*\(attempt 2 of 2\)\u001b\[39m\n/
      : new RegExp(`\\n${bad} bad: \\u001b\\[31mburied: .*\\(attempt 2 of 2\\)\\u001b\\[39m\\n`),
  )
  // No other sequence than those of ours, each closed on its line.
  const rest = (first + second).replace(
    /\u001b\[(?:3[123]m([^\u001b\n]*)\u001b\[39|2m([^\u001b\n]*)\u001b\[22)m/g,
    '$1$2',
  )
  expect(rest).not.toContain(ESC)
})

test('the JSON log has no colours, whatever is asked for', async () => {
  const home = await install({ FORCE_COLOR: '1' })
  home.addAlgorithm('ok', 'echo 1')
  const uuid = await home.putJob('ok')
  const worker = await home.startWorker({}, ['--color'])
  await worker.waitFor('the end of the job', (line) => line.event === 'job_settled' && line.uuid === uuid)
  await worker.stop()
  expect(worker.said.stdout).not.toContain(ESC)
})
