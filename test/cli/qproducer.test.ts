import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { parsePackage, UUID_PATTERN } from '../../src/job/package.ts'
import { openQueue } from '../../src/queue/queue.ts'
import { freePort, startBroker, type TestBroker } from '../support/broker.ts'
import { runQproducer, startQproducer } from './run-qproducer.ts'

const UUID = 'bc3a925099b9012e0f06549a20077664'
let broker: TestBroker
let tubes = 0

beforeAll(async () => {
  broker = await startBroker()
})
afterAll(() => broker.stop())

const newTube = () => `cli-${++tubes}`

async function newDir(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'qproducer-'))
  onTestFinished(() => rm(dir, { recursive: true }))
  return dir
}

/** The jobs in a tube, with the broker's numbers; they are deleted. */
async function takeAll(tube: string, url = broker.url) {
  const queue = await openQueue(url)
  onTestFinished(() => queue.close())
  await queue.watch([tube])
  const jobs = []
  for (let job = await queue.reserve(0); job; job = await queue.reserve(0)) {
    const { ticket, priority, ttrSeconds, body } = job
    jobs.push({ ticket, priority, ttrSeconds, ...parsePackage(body) })
    await job.delete()
  }
  return jobs
}

describe('qproducer', () => {
  it('puts one job and prints the work package and the result URL', async () => {
    const tube = newTube()
    const run = await runQproducer(broker, ['-a', 'sleep', '-p', '{"n": 1.10}', '--tube', tube, '--uuid', UUID], {
      env: { RESULT_BASEURL: 'http://results.example:8080/' },
    })
    expect(run).toEqual({
      code: 0,
      stdout: `generated work package: [{"uuid":"${UUID}","type":"sleep"},{"n": 1.10}]\nresult URL: http://results.example:8080/${UUID}\n`,
      stderr: '',
    })
    expect(await takeAll(tube)).toMatchObject([{ priority: 1337, header: { uuid: UUID }, payloadJson: '{"n": 1.10}' }])
  })

  it('with -v prints its configuration, the broker and the ticket, in the words of old', async () => {
    const tube = newTube()
    const run = await runQproducer(broker, ['-v', '-a', 'sleep', '--tube', tube])
    expect(run.code).toBe(0)
    expect(run.stdout).toMatch(
      new RegExp(
        `^Using this configuration:\n--- \n[^]*\nTUBE: "${tube}"\n[^]*\n---\nStarting producer, connecting to 127.0.0.1:${broker.port}\ngenerated work package: .*\nticket: \\d+\nresult URL: .*\n$`,
      ),
    )
    const [job] = await takeAll(tube)
    expect(run.stdout).toContain(`\nticket: ${job?.ticket}\n`)
    expect(job?.payloadJson).toBe('{}')
  })

  it('with --json prints exactly one object with the ticket', async () => {
    const tube = newTube()
    const flags = [
      '--priority',
      '0',
      '--delay',
      '0',
      '--ttr',
      '5m',
      '--max-attempts',
      '2',
      '--tag',
      'a=b=c',
      '--tag',
      'd=',
    ]
    const run = await runQproducer(broker, ['-a', 'sleep', '--tube', tube, '--json', ...flags])
    expect(run.stderr).toBe('')
    const printed = JSON.parse(run.stdout)
    const [job] = await takeAll(tube)
    expect(printed).toEqual({
      uuid: expect.stringMatching(UUID_PATTERN),
      type: 'sleep',
      tube,
      ticket: job?.ticket,
      priority: 0,
      delay_seconds: 0,
      ttr_seconds: 300,
      bytes: expect.any(Number),
      url: `http://localhost:11380/${printed.uuid}`,
    })
    expect(job).toMatchObject({
      priority: 0,
      ttrSeconds: 300,
      header: { uuid: printed.uuid, max_attempts: 2, tags: { a: 'b=c', d: '' } },
    })
  })

  it('takes the payload from the command line, a file or stdin', async () => {
    const tube = newTube()
    const file = join(await newDir(), 'payload.json')
    await writeFile(file, '\ufeff{"from": "file"}\n')
    const put = (payload: string, stdin?: string) =>
      runQproducer(broker, ['-a', 'sleep', '--tube', tube, '-p', payload], { stdin })
    const runs = [await put('plain text'), await put(`@${file}`), await put('-', '[1,\n2]\n'), await put('-', 'text\n')]
    expect(runs.map((run) => run.code)).toEqual([0, 0, 0, 0])
    expect((await takeAll(tube)).map((job) => job.payloadJson)).toEqual([
      '{"payload":"plain text"}',
      '{"from": "file"}',
      '[1,\n2]',
      '{"payload":"text\\n"}',
    ])
  })

  it('reads an rc file; flags stand above it', async () => {
    const tube = newTube()
    const rc = join(await newDir(), 'rc')
    await writeFile(
      rc,
      `BEANSTALK_SERVER: localhost\nBEANSTALK_PORT: "${broker.port}"\nTUBE: ${tube}\nTTR: 2h\nPRIORITY: 5\n`,
    )
    const run = await runQproducer(undefined, ['-c', rc, '-a', 'sleep', '--priority', '7', '--json'])
    expect(run.code).toBe(0)
    expect(await takeAll(tube)).toMatchObject([{ priority: 7, ttrSeconds: 7200 }])
  })

  it.each([
    [[], 'no algorithm is named'],
    [['-p', '{}'], 'no algorithm is named'],
    [['-a', 'Sleep'], 'it is "Sleep"'],
    [['-a', '../sh'], 'it is "../sh"'],
    [['-a', 'sleep', '--uuid', 'BC3A9250-99B9-012E-0F06-549A20077664'], `write it as ${UUID}`],
    [['-a', 'sleep', '--uuid', '../x'], 'it is "../x"'],
    [['-a', 'sleep', '--priority', '-1'], '--priority must be a whole number from 0 to 4294967295; it is "-1"'],
    [['-a', 'sleep', '--priority', '4294967296'], '--priority'],
    [['-a', 'sleep', '--delay', '1.5'], '--delay: a duration is whole seconds'],
    [['-a', 'sleep', '--ttr', '0'], '--ttr must be at least 1 s'],
    [['-a', 'sleep', '--ttr', 'soon'], 'this is "soon"'],
    [['-a', 'sleep', '--max-attempts', '0'], '--max-attempts'],
    [['-a', 'sleep', '--tag', 'novalue'], '--tag takes key=value; it is "novalue"'],
    [['-a', 'sleep', '--tag', 'a=1', '--tag', 'a=2'], '--tag a is given twice'],
    [['-a', 'sleep', '--tube', 'a b'], '--tube'],
    [['-a', 'sleep', '--timeout', '5'], '--timeout goes only with --wait'],
    [['-a', 'sleep', '--batch', 'x', '-p', '{}'], '--batch and --payload do not go together'],
    [['-a', 'sleep', '--batch', '-', '-p', '-'], '--batch and --payload do not go together'],
    [['-a', 'sleep', '--batch', 'x', '--uuid', UUID], '--batch and --uuid do not go together'],
    [['-a', 'sleep', '--batch', 'x', '--wait'], '--batch and --wait do not go together'],
    [['-a', 'sleep', '--prority', '3'], 'unknown option "--prority"; did you mean --priority?\n  try qproducer --help'],
    [['-a', 'sleep', 'extra'], 'too many arguments'],
    [['-a'], 'argument missing'],
  ])('refuses the command line %j with 64 and puts nothing', async (args, message) => {
    const run = await runQproducer(undefined, args, { env: { BEANSTALK_PORT: '1' } })
    expect(run.stderr).toContain(message)
    expect(run.stderr).toMatch(/^qproducer: /)
    expect(run).toMatchObject({ code: 64, stdout: '' })
  })

  it.each([
    ['{bad', 65, 'write {"payload": "..."}'],
    [`${'['.repeat(5000)}${']'.repeat(5000)}`, 65, 'levels deep'],
    ['@/no/such/file', 66, 'payload file /no/such/file: no such file'],
    ['@/', 66, 'payload file /: cannot be read (EISDIR)'],
  ])('refuses the payload %.20s with %d', async (payload, code, message) => {
    const before = await broker.stat('cmd-put')
    const run = await runQproducer(broker, ['-a', 'sleep', '-p', payload])
    expect(run).toMatchObject({ code, stdout: '' })
    expect(run.stderr).toContain(message)
    expect(await broker.stat('cmd-put')).toBe(before)
  })

  it('hints at the algorithm that was meant where this machine has one of nearly that name, and puts the job', async () => {
    const dir = await newDir()
    await mkdir(join(dir, 'mine', 'harvest'), { recursive: true })
    const rc = join(dir, 'rc')
    await writeFile(rc, 'ALGORITHM_DIRS: [mine, nothing, builtin]\n')
    const hint = async (type: string, ...args: string[]) => {
      const tube = newTube()
      const run = await runQproducer(broker, ['-a', type, '--tube', tube, '--json', ...args])
      expect(run.code).toBe(0)
      expect(JSON.parse(run.stdout)).toMatchObject({ type })
      expect(await takeAll(tube)).toHaveLength(1)
      return run.stderr
    }
    expect(await hint('forcast')).toBe(
      'qproducer: no algorithm forcast here; did you mean forecast? The job is put all the same\n',
    )
    expect(await hint('harvst', '-c', rc)).toContain('; did you mean harvest?')
    expect(await hint('forcast', '-c', rc)).toContain('; did you mean forecast?')
    // What is there, what resembles nothing, and what may be known elsewhere only.
    for (const type of ['forecast', 'weather']) expect(await hint(type)).toBe('')
    expect(await hint('harvest', '-c', rc)).toBe('')
    expect(await hint('harvst')).toBe('')
  })

  it('refuses a payload that is no UTF-8', async () => {
    const run = await runQproducer(broker, ['-a', 'sleep', '-p', '-'], { stdin: Buffer.from([0xff, 0xfe]) })
    expect(run.code).toBe(65)
    expect(run.stderr).toContain('the payload from stdin (2 bytes) is not UTF-8 text')
  })

  it('refuses a bad rc file with 78 and a missing one with 66', async () => {
    const rc = join(await newDir(), 'rc')
    await writeFile(rc, 'TUBBE: x\nTTR: soon\n')
    const bad = await runQproducer(broker, ['-c', rc, '-a', 'sleep'])
    expect(bad.code).toBe(78)
    expect(bad.stderr).toContain('did you mean TUBE?')
    expect(bad.stderr).toContain('TTR must be')
    expect((await runQproducer(broker, ['-c', `${rc}.none`, '-a', 'sleep'])).code).toBe(66)
  })

  it('says how to start a broker when none is there, with 69', async () => {
    const port = String(await freePort())
    const env = { BEANSTALK_SERVER: '127.0.0.1', BEANSTALK_PORT: port }
    const run = await runQproducer(undefined, ['-a', 'sleep'], { env })
    expect(run).toEqual({
      code: 69,
      stdout: '',
      stderr: `qproducer: cannot connect to beanstalkd at 127.0.0.1:${port} (connection refused): start it with "beanstalkd -l 127.0.0.1 -p ${port}", or set BEANSTALK_SERVER and BEANSTALK_PORT\n`,
    })
  })

  it('ends with an error and without a result URL when the broker refuses the put (B17)', async () => {
    const draining = await startBroker()
    onTestFinished(() => draining.stop())
    const queue = await openQueue(draining.url)
    onTestFinished(() => queue.close())
    process.kill(draining.pid, 'SIGUSR1')
    const options = { tube: 'x', priority: 1, delaySeconds: 0, ttrSeconds: 1 }
    const put = () =>
      queue.put(Buffer.from('x'), options).then(
        () => 'taken',
        () => 'refused',
      )
    await expect.poll(put).toBe('refused')
    const run = await runQproducer(draining, ['-a', 'sleep'])
    expect(run).toMatchObject({ code: 69, stdout: '' })
    expect(run.stderr).toMatch(/^qproducer: the broker did not take the job: .* drains: it takes no more jobs/)
  })

  it('refuses a body over the limit before the put, with both sizes (B17)', async () => {
    const before = await broker.stat('cmd-put')
    const run = await runQproducer(broker, ['-a', 'sleep', '--uuid', UUID, '-p', '-'], { stdin: 'x'.repeat(70_000) })
    expect(run).toMatchObject({ code: 65, stdout: '' })
    expect(run.stderr).toContain('has 70075 bytes and the broker takes at most 65535: start beanstalkd with -z 70075')
    expect(await broker.stat('cmd-put')).toBe(before)
  })

  it('prints its help and version on stdout', async () => {
    const help = await runQproducer(undefined, ['--help'])
    expect(help).toMatchObject({ code: 0, stderr: '' })
    expect(help.stdout).toContain('--batch')
    expect(help.stdout).toContain('Examples:')
    expect((await runQproducer(undefined, ['-V'])).stdout).toMatch(/^\d+\.\d+\.\d+( \([0-9a-f]{7,}(-dirty)?\))?\n$/)
  })
})

describe('qproducer --batch', () => {
  it('puts a job for each line of a file and counts them', async () => {
    const tube = newTube()
    const file = join(await newDir(), 'jobs.ndjson')
    await writeFile(file, `{"n":1}\r\n\r\n[{"uuid":"${UUID}","type":"mail"},{"n":2}]\r\nthree`)
    const run = await runQproducer(broker, ['--batch', file, '-a', 'sleep', '--tube', tube])
    expect(run).toMatchObject({ code: 0, stderr: '' })
    expect(run.stdout).toMatch(/^accepted 3 jobs from lines 1 to 4 in \d+\.\d\d s \(\d+\/s\)\n$/)
    expect((await takeAll(tube)).map((job) => [job.header.type, job.payloadJson])).toEqual([
      ['sleep', '{"n":1}'],
      ['mail', '{"n":2}'],
      ['sleep', '{"payload":"three"}'],
    ])
  })

  it('with --json prints an object for each job of stdin and last the account', async () => {
    const tube = newTube()
    const run = await runQproducer(broker, ['--batch', '-', '-a', 'sleep', '--tube', tube, '--json'], {
      stdin: 'a\nb\n',
    })
    const printed = run.stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line))
    const jobs = await takeAll(tube)
    expect(printed.slice(0, 2)).toEqual(
      jobs.map(({ ticket, header: { uuid, type } }, i) => ({
        line: i + 1,
        uuid,
        type,
        ticket,
        bytes: expect.any(Number),
        url: `http://localhost:11380/${uuid}`,
      })),
    )
    expect(printed[2]).toMatchObject({
      accepted: 2,
      first_line: 1,
      last_line: 2,
      failed: null,
      unanswered: null,
      next_line: 3,
    })
  })

  it('stops at a bad line and tells the command that goes on, which works', async () => {
    const tube = newTube()
    const dir = await newDir()
    const file = join(dir, "it's.ndjson")
    const lines = Array.from({ length: 100 }, (_, i) => (i === 56 ? '{"n":57' : `{"n":${i + 1}}`))
    await writeFile(file, `${lines.join('\n')}\n`)
    const args = ['-a', 'sleep', '--tube', tube, `--batch=${file}`, '--tag', 'why=a b']
    const run = await runQproducer(broker, args)
    expect(run.code).toBe(65)
    expect(run.stdout).toMatch(/^accepted 56 jobs from lines 1 to 56 /)
    expect(run.stderr).toMatch(/^qproducer: it's\.ndjson, line 57: the payload begins like JSON and is none/)
    expect(run.stderr).toContain('accepted 56 jobs from lines 1 to 56\n')
    const command = /: (tail -n \+57 .*)$/m.exec(run.stderr)?.[1] ?? ''
    lines[56] = '{"n":57}'
    await writeFile(file, `${lines.join('\n')}\n`)
    const bin = join(import.meta.dirname, '..', '..', 'bin')
    const env = {
      PATH: `${dir}:${process.execPath.replace(/\/[^/]*$/, '')}:/usr/bin:/bin:${bin}`,
      BEANSTALK_SERVER: broker.host,
      BEANSTALK_PORT: String(broker.port),
    }
    await promisify(execFile)('sh', ['-c', command], { env })
    const jobs = await takeAll(tube)
    expect(jobs.map((job) => JSON.parse(job.payloadJson).n)).toEqual(lines.map((_, i) => i + 1))
    expect(jobs.every((job) => job.header.tags?.why === 'a b')).toBe(true)
  })

  it('names the lines that were not answered when the broker dies, with 69', async () => {
    const doomed = await startBroker()
    onTestFinished(() => doomed.stop())
    const { child, ended, text } = startQproducer(doomed, ['--batch', '-', '-a', 'sleep', '--json'], {
      stdin: 'x\n'.repeat(200_000),
    })
    child.stdout.once('data', () => void doomed.kill('SIGKILL'))
    const run = await ended
    expect(run.code).toBe(69)
    const printed = text.stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line))
    const account = printed.at(-1)
    expect(account.accepted).toBe(printed.length - 1)
    expect(account.unanswered.from_line).toBe(account.accepted + 1)
    expect(run.stderr).toContain(
      `lines ${account.unanswered.from_line} to ${account.unanswered.to_line} were sent and not answered`,
    )
    expect(run.stderr).toContain(`tail -n +${account.next_line} | qproducer --batch - -a sleep --json`)
  })

  it('goes on to the end when nobody reads its output any more', async () => {
    const tube = newTube()
    const { child, ended } = startQproducer(broker, ['--batch', '-', '-a', 'sleep', '--json', '--tube', tube], {
      stdin: 'x\n'.repeat(20_000),
    })
    child.stdout.destroy()
    expect(await ended).toMatchObject({ code: 0, stderr: '' })
    expect(await broker.ask(`stats-tube ${tube}\r\n`, /\n\r\n$/)).toContain('current-jobs-ready: 20000\n')
  })

  it('ends with 130 at Ctrl-C and tells what was accepted', async () => {
    const live = startQproducer(broker, ['--batch', await makeFifo(), '-a', 'sleep', '-v', '--tube', newTube()])
    // Once only: a second one ends the program before it has told anything.
    await expect.poll(() => live.text.stdout, { timeout: 10_000 }).toContain('line 1:')
    live.child.kill('SIGINT')
    const run = await live.ended
    expect(run.code).toBe(130)
    expect(run.stderr).toContain('accepted 1 job from lines 1 to 1\n')
    expect(run.stderr).toContain('tail -n +2 ')
  })

  it.each([
    ['/no/such/file', 'no such file'],
    ['/', 'is a directory'],
  ])('of %s ends with 66', async (file, message) => {
    const run = await runQproducer(broker, ['--batch', file, '-a', 'sleep'])
    expect(run).toMatchObject({ code: 66, stdout: '' })
    expect(run.stderr).toContain(message)
  })
})

/** A named pipe that delivers one line and then nothing, without an end. */
async function makeFifo(): Promise<string> {
  const fifo = join(await newDir(), 'fifo')
  await promisify(execFile)('mkfifo', [fifo])
  const { open } = await import('node:fs/promises')
  // Open for both, so that neither side waits for the other.
  const handle = await open(fifo, 'r+')
  onTestFinished(() => handle.close())
  await handle.write('one\n')
  return fifo
}
