/** `qproducer --batch FILE --max-ready N`, with real brokers and real ends of the process. */

import { execFile } from 'node:child_process'
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { parsePackage } from '../../src/job/package.ts'
import { openQueue } from '../../src/queue/queue.ts'
import { startBroker, type TestBroker } from '../support/broker.ts'
import { until } from '../support/installation.ts'
import { runQproducer, startQproducer } from './run-qproducer.ts'

let broker: TestBroker
let tubes = 0

beforeAll(async () => {
  broker = await startBroker()
})
afterAll(() => broker.stop())

const newTube = () => `feed-${++tubes}`

function newDir(): string {
  const dir = mkdtempSync(join(tmpdir(), 'feed-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  return dir
}

const makeLines = (count: number, from = 1) => Array.from({ length: count }, (_, i) => `{"n":${from + i}}\n`).join('')

function newFile(lines: number): string {
  const file = join(newDir(), 'jobs.ndjson')
  writeFileSync(file, makeLines(lines))
  return file
}

const readState = (file: string) => JSON.parse(readFileSync(file, 'utf8'))

async function openHere(url = broker.url) {
  const queue = await openQueue(url)
  onTestFinished(() => queue.close())
  return queue
}

/** What waits in a tube, taken out of it: number and uuid of each job. */
async function takeAll(tube: string, url = broker.url): Promise<{ n: number; uuid: string }[]> {
  const queue = await openHere(url)
  await queue.watch([tube])
  const jobs = []
  for (let job = await queue.reserve(0); job; job = await queue.reserve(0)) {
    const { header, payloadJson } = parsePackage(job.body)
    jobs.push({ n: JSON.parse(payloadJson).n as number, uuid: header.uuid })
    await job.delete()
  }
  return jobs
}

const numbers = (count: number) => Array.from({ length: count }, (_, i) => i + 1)
const args = (file: string, tube: string, ...more: string[]) => [
  '-a',
  'sleep',
  '--batch',
  file,
  '--tube',
  tube,
  ...more,
]

/** Each job at least once; the same uuid where twice. @returns how many are there twice */
function countTwice(jobs: readonly { n: number; uuid: string }[], count: number): number {
  const uuids = new Map<number, string>()
  for (const { n, uuid } of jobs) {
    expect(uuids.get(n) ?? uuid).toBe(uuid)
    uuids.set(n, uuid)
  }
  expect([...uuids.keys()].sort((a, b) => a - b)).toEqual(numbers(count))
  return jobs.length - count
}

describe('a feed', () => {
  it('keeps no more jobs waiting than it may, and puts all of them, in order and once', async () => {
    const [file, tube] = [newFile(1000), newTube()]
    const live = startQproducer(broker, args(file, tube, '--max-ready', '100'))
    const [worker, watcher] = [await openHere(), await openHere()]
    await worker.watch([tube])
    const seen: number[] = []
    let most = 0
    const ended = live.ended.then(() => true)
    for (let isEnded = false; !isEnded; ) {
      const job = await worker.reserve(0)
      if (job === undefined) {
        isEnded = await Promise.race([ended, new Promise<false>((resolve) => setTimeout(resolve, 5, false))])
        continue
      }
      const { ready, reserved } = await watcher.countJobs(tube)
      most = Math.max(most, ready + reserved)
      seen.push(JSON.parse(parsePackage(job.body).payloadJson).n)
      await job.delete()
    }
    seen.push(...(await takeAll(tube)).map(({ n }) => n))
    expect(seen).toEqual(numbers(1000))
    // What is reserved does not wait.
    expect(most).toBeGreaterThan(90)
    expect(most).toBeLessThanOrEqual(101)
    expect(await live.ended).toMatchObject({ code: 0, stderr: '' })
    expect(live.text.stdout).toMatch(
      /^accepted 1000 jobs from lines 1 to 1000 in .*\nfinished: 1000 jobs accepted in all /,
    )
  })

  it('counts jobs that are delayed, waits without a hurry, and goes on behind the last one after Ctrl-C', async () => {
    const [file, tube] = [newFile(30), newTube()]
    const live = startQproducer(broker, args(file, tube, '--max-ready', '10', '--delay', '1h'))
    const queue = await openHere()
    await until('it is full', async () => (await queue.countJobs(tube)).delayed === 10)
    const asked = await broker.stat('cmd-stats-tube')
    const startedMs = performance.now()
    await until('it asks again', async () => (await broker.stat('cmd-stats-tube')) >= asked + 4)
    // After 100, 200, 400, 800, 1000 ms; it may have asked once or twice before.
    expect(performance.now() - startedMs).toBeGreaterThan(1000)
    expect(await queue.countJobs(tube)).toMatchObject({ ready: 0, delayed: 10 })
    live.child.kill('SIGINT')
    const run = await live.ended
    expect(run.code).toBe(130)
    expect(run.stderr).toContain(
      'jobs.ndjson, line 11: the batch was interrupted\n  accepted 10 jobs from lines 1 to 10\n',
    )
    expect(run.stderr).toContain(
      `to go on with line 11: qproducer -a sleep --batch ${file} --tube ${tube} --max-ready 10`,
    )
    const again = await runQproducer(broker, args(file, tube, '--max-ready', '100'))
    expect(again).toMatchObject({ code: 0, stderr: '' })
    expect(again.stdout).toMatch(
      /^going on behind line 10, 10 jobs accepted before\naccepted 20 jobs from lines 11 to 30 /,
    )
    expect((await takeAll(tube)).map(({ n }) => n)).toEqual(numbers(30).slice(10))
    expect((await queue.countJobs(tube)).delayed).toBe(10)
  })

  it('that is killed loses nothing, and puts few jobs twice, with the same uuids', async () => {
    const [file, tube] = [newFile(40_000), newTube()]
    for (const [round, puts] of [10_000, 20_000].entries()) {
      const live = startQproducer(broker, args(file, tube, '--max-ready', '1000000'))
      const queue = await openHere()
      await until('it is in the middle', async () => (await queue.countJobs(tube)).ready > puts)
      live.child.kill('SIGKILL')
      expect((await live.ended).code).toBe(null)
      const { line, finished } = readState(`${file}.feed`)
      expect(line, `round ${round}`).toBeGreaterThan(0)
      expect(finished).toBe(false)
    }
    const last = await runQproducer(broker, args(file, tube, '--max-ready', '1000000'))
    expect(last).toMatchObject({ code: 0, stderr: '' })
    const twice = countTwice(await takeAll(tube), 40_000)
    expect(twice).toBeLessThanOrEqual(20_000)
    expect(existsSync(`${file}.feed.lock`)).toBe(false)
  })

  it('whose broker is lost ends with 69, and goes on when it is back', async () => {
    const [dir, file] = [newDir(), newFile(20_000)]
    const doomed = await startBroker({ dir })
    onTestFinished(() => doomed.stop())
    const live = startQproducer(doomed, args(file, 'x', '--state', join(dir, 'my.state'), '--json'))
    await until('jobs are accepted', () => live.text.stdout.includes('"line":2000,'))
    await doomed.kill('SIGKILL')
    const run = await live.ended
    expect(run.code).toBe(69)
    expect(run.stderr).toMatch(/lines \d+ to \d+ are put again, with the same uuids/)
    const account = JSON.parse(run.stdout.trimEnd().split('\n').at(-1) ?? '')
    const state = readState(join(dir, 'my.state'))
    expect(account.feed).toEqual({
      state: 'stopped',
      file: join(dir, 'my.state'),
      accepted: account.accepted,
      line: state.line,
      offset: state.offset,
    })
    expect(account.accepted).toBe(state.line)
    const revived = await startBroker({ dir, port: doomed.port })
    onTestFinished(() => revived.stop())
    const again = await runQproducer(revived, args(file, 'x', '--state', join(dir, 'my.state')))
    expect(again).toMatchObject({ code: 0, stderr: '' })
    expect(countTwice(await takeAll('x', revived.url), 20_000)).toBeLessThanOrEqual(10_000)
  })

  it('stops at a bad line, goes on when it is corrected, and puts nothing twice', async () => {
    const [file, tube] = [newFile(100), newTube()]
    const good = readFileSync(file, 'utf8')
    writeFileSync(file, good.replace('{"n":57}', '{"n":57'))
    const run = await runQproducer(broker, args(file, tube, '--max-ready', '1000'))
    expect(run.code).toBe(65)
    expect(run.stderr).toContain('jobs.ndjson, line 57: the payload begins like JSON and is none')
    expect(run.stderr).toContain('to go on with line 57 when that line is corrected: qproducer ')
    writeFileSync(file, good)
    expect(await runQproducer(broker, args(file, tube, '--max-ready', '1000'))).toMatchObject({ code: 0 })
    expect((await takeAll(tube)).map(({ n }) => n)).toEqual(numbers(100))
  })

  it('that is finished does nothing, but for lines that came behind it, or anew with new uuids', async () => {
    const [file, tube] = [newFile(20), newTube()]
    expect(await runQproducer(broker, args(file, tube, '--max-ready', '100'))).toMatchObject({ code: 0 })
    const first = await takeAll(tube)
    // It does not even ask for a broker.
    const done = await runQproducer(undefined, args(file, tube, '--max-ready', '100'), { env: { BEANSTALK_PORT: '1' } })
    expect(done).toEqual({
      code: 0,
      stdout: `nothing to do: all 20 lines were read before, 20 jobs accepted (${file}.feed; --anew begins anew)\n`,
      stderr: '',
    })
    const told = await runQproducer(broker, args(file, tube, '--max-ready', '100', '--json'))
    expect(JSON.parse(told.stdout)).toEqual({
      feed: { state: 'done', file: `${file}.feed`, accepted: 20, line: 20, offset: expect.any(Number) },
    })
    appendFileSync(file, makeLines(5, 21))
    expect((await runQproducer(broker, args(file, tube, '--max-ready', '100'))).stdout).toContain(
      'going on behind line 20, 20 jobs accepted before\naccepted 5 jobs from lines 21 to 25 ',
    )
    expect((await takeAll(tube)).map(({ n }) => n)).toEqual([21, 22, 23, 24, 25])
    expect(await runQproducer(broker, args(file, tube, '--max-ready', '100', '--anew'))).toMatchObject({ code: 0 })
    const anew = await takeAll(tube)
    expect(anew.map(({ n }) => n)).toEqual(numbers(25))
    expect(new Set([...first, ...anew].map(({ uuid }) => uuid)).size).toBe(45)
  })

  it('of stdin goes on when the same lines come again', async () => {
    const [state, tube] = [join(newDir(), 'state'), newTube()]
    const feed = (stdin: string) => runQproducer(broker, args('-', tube, '--state', state), { stdin })
    expect(await feed(`${makeLines(500)}{bad\n`)).toMatchObject({ code: 65 })
    expect(await feed(makeLines(1000))).toMatchObject({ code: 0 })
    expect((await feed(makeLines(1000))).stdout).toMatch(/^nothing to do/)
    expect((await takeAll(tube)).map(({ n }) => n)).toEqual(numbers(1000))
    const other = await feed(makeLines(1000, 2))
    expect(other).toMatchObject({ code: 65, stdout: '' })
    expect(other.stderr).toContain('the input is not the one of the state file')
  })

  it("of a file is one at a time, by whatever name; a dead one is in nobody's way", async () => {
    const [file, tube] = [newFile(100), newTube()]
    await promisify(execFile)('ln', ['-s', file, `${file}.link`])
    const live = startQproducer(broker, args(file, tube, '--max-ready', '10'))
    const queue = await openHere()
    await until('it is full', async () => (await queue.countJobs(tube)).ready === 10)
    const second = await runQproducer(broker, args(`${file}.link`, tube, '--max-ready', '100'))
    expect(second).toEqual({
      code: 75,
      stdout: '',
      stderr: `qproducer: another feed has the state file ${file}.feed now: let it go on, or stop it first\n`,
    })
    live.child.kill('SIGKILL')
    await live.ended
    expect(await runQproducer(broker, args(`${file}.link`, tube, '--max-ready', '200'))).toMatchObject({ code: 0 })
    expect(countTwice(await takeAll(tube), 100)).toBe(0)
  })

  it('that can no longer note how far it came stops with 74, and goes on afterwards', async () => {
    const [file, tube] = [newFile(100_000), newTube()]
    const live = startQproducer(broker, args(file, tube, '--max-ready', '10'))
    await until('it waits', () => existsSync(`${file}.feed`) && readState(`${file}.feed`).line === 10)
    mkdirSync(`${file}.feed.tmp`)
    await takeAll(tube)
    const run = await live.ended
    expect(run.code).toBe(74)
    expect(run.stderr).toContain(`the state file ${file}.feed cannot be written (EISDIR)`)
    rmSync(`${file}.feed.tmp`, { recursive: true })
    const again = await runQproducer(broker, args(file, tube, '--max-ready', '1000000'))
    expect(again.stdout).toMatch(/^going on behind line \d+, /)
    expect(again.code).toBe(0)
  })

  it.each([
    [['--max-ready', '0'], '--max-ready must be a whole number from 1 to 1000000000; it is "0"'],
    [['--max-ready', '-1'], '--max-ready'],
    [['--max-ready', '1.5'], 'it is "1.5"'],
    [['--max-ready', 'many'], 'it is "many"'],
    [['--max-ready', ''], 'it is ""'],
    [['--state', ''], '--state names a file; it is empty'],
    [['--anew'], '--anew goes only with --max-ready or --state'],
  ])('refuses %j with 64', async (flags, message) => {
    const run = await runQproducer(undefined, args('/dev/null', 'x', ...flags), { env: { BEANSTALK_PORT: '1' } })
    expect(run).toMatchObject({ code: 64, stdout: '' })
    expect(run.stderr).toContain(message)
  })

  it.each([
    [['-a', 'sleep', '--max-ready', '5'], '--max-ready goes only with --batch FILE'],
    [['-a', 'sleep', '--state', 'x'], '--state goes only with --batch FILE'],
    [['-a', 'sleep', '--batch', '-', '--max-ready', '5'], 'needs --state FILE, where it is noted how far it came'],
    [
      ['-a', 'sleep', '--batch', '/dev/null', '--max-ready', '5'],
      '/dev/null is no regular file: it needs --state FILE',
    ],
  ])('refuses the command line %j with 64', async (line, message) => {
    const run = await runQproducer(undefined, line, { env: { BEANSTALK_PORT: '1' } })
    expect(run).toMatchObject({ code: 64, stdout: '' })
    expect(run.stderr).toContain(message)
  })

  it('refuses a state file that it cannot read, that is none, or that it cannot write, and puts nothing', async () => {
    const file = newFile(10)
    const before = await broker.stat('cmd-put')
    const feed = (state: string) => runQproducer(broker, args(file, 'x', '--state', state))
    const [dir, none] = [join(file, '..', 'dir'), join(file, '..', 'none')]
    mkdirSync(dir)
    writeFileSync(none, 'my notes\n')
    expect(await feed(dir)).toMatchObject({ code: 66, stdout: '' })
    expect(await feed(none)).toMatchObject({ code: 65, stdout: '' })
    // The batch itself, by mistake.
    expect((await feed(file)).stderr).toContain(`${file} is no state file of a feed, or damaged`)
    expect(readFileSync(file, 'utf8')).toBe(makeLines(10))
    expect(await feed('/no/such/folder/state')).toMatchObject({ code: 73, stdout: '' })
    expect(await feed('/proc/self/state')).toMatchObject({ code: 73, stdout: '' })
    expect(await broker.stat('cmd-put')).toBe(before)
  })
})
