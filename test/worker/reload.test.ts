import { renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test, vi } from 'vitest'
import { stringify } from 'yaml'
import { startBroker } from '../support/broker.ts'
import { addRuns, eventsOf, healthOf, letGo, putOne, tell, untilGone, untilWaiting } from '../support/gated.ts'
import { type Installation, install, newUuid, type RunningWorker, until } from '../support/installation.ts'
import { startProxy } from '../support/proxy.ts'

// Longer than what is waited for within: a slow machine is no fault.
vi.setConfig({ testTimeout: 180_000 })

/** A worker whose rc file a test may write; `env` stands above it. */
async function startWithFile(
  home: Installation,
  settings: object,
  env: Record<string, string> = {},
  args: string[] = [],
) {
  const file = join(home.base, 'rc')
  const write = (values: object) => writeFileSync(file, stringify({ ...common(home), ...values }))
  write(settings)
  // An empty variable does not count.
  const unset = {
    BEANSTALK_PORT: '',
    RESULT_BASEDIR: '',
    ALGORITHM_DIRS: '',
    HTTP_PORT: '',
    CONCURRENCY: '',
    RETRY_DELAY: '',
  }
  const worker = await home.startWorker({ ...unset, ...env }, ['-c', file, ...args])
  return { worker, file, write }
}

function common(home: Installation) {
  const { broker, results, algorithms } = home
  return {
    BEANSTALK_PORT: broker.port,
    RESULT_BASEDIR: results,
    ALGORITHM_DIRS: [algorithms],
    HTTP_PORT: 0,
    CONCURRENCY: 1,
  }
}

async function watchersOf(home: Installation, tube: string): Promise<number> {
  const answer = await home.broker.ask(`stats-tube ${tube}\r\n`, /NOT_FOUND\r\n$|\n\r\n$/)
  return Number(/^current-watching: (\d+)$/m.exec(answer)?.[1] ?? 0)
}

async function untilRunning(worker: RunningWorker, count: number): Promise<void> {
  await until(`${count} runs`, async () => (await healthOf(worker)).slots.busy === count)
}

test('HUP puts new tubes, times, attempts, delays and algorithms in force, and the run in hand goes on to its result', async () => {
  const home = await install()
  addRuns(home)
  home.addAlgorithm('bad', 'exit 9')
  home.addAlgorithm('long', 'sleep 300', 'max_attempts: 1')
  const { worker, write } = await startWithFile(home, {
    TUBES: ['one'],
    GRACE_TIME: 0,
    MAX_ATTEMPTS: 5,
    RETRY_DELAY: 1000,
  })
  const inHand = await putOne(home, 'waits', { tube: 'one' })
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  home.addAlgorithm('fresh', 'echo 3')
  write({ TUBES: ['two'], GRACE_TIME: 3, MAX_ATTEMPTS: 2, RETRY_DELAY: 0, CONCURRENCY: 3 })
  const { changed, need_restart } = await tell(worker, 'SIGHUP', 'config_read')
  expect([changed].flat().sort()).toEqual(['CONCURRENCY', 'GRACE_TIME', 'MAX_ATTEMPTS', 'RETRY_DELAY', 'TUBES'])
  expect(need_restart).toEqual([])
  const fresh = await putOne(home, 'fresh', { tube: 'two' })
  const bad = await putOne(home, 'bad', { tube: 'two' })
  const long = await putOne(home, 'long', { tube: 'two', ttr: 1 })
  await untilGone(home, fresh)
  await until('both are buried', () => [bad, long].every(({ uuid }) => home.status(uuid)?.state === 'failed'))
  expect(home.status(bad.uuid)?.reason).toBe('exit 9 (attempt 2 of 2)')
  expect(home.status(long.uuid)?.reason).toBe('ended after 4 s (TTR + GRACE_TIME) (attempt 1 of 1)')
  letGo(home)
  await untilGone(home, inHand)
  expect(home.status(inHand.uuid)).toMatchObject({ state: 'complete', attempts: [{ attempt: 1 }] })
  await until('nobody watches the former tube', async () => (await watchersOf(home, 'one')) === 0)
  await until('all watch the new one', async () => (await watchersOf(home, 'two')) === 3)
})

test('HUP changes the number of slots up and down, and up again while the surplus ones are busy; no run is dropped', async () => {
  const home = await install()
  addRuns(home)
  const { worker, write } = await startWithFile(home, { CONCURRENCY: 1 })
  const jobs = []
  for (let i = 0; i < 5; i++) jobs.push(await putOne(home, 'waits'))
  await untilRunning(worker, 1)
  const change = async (slots: number) => {
    write({ CONCURRENCY: slots })
    await tell(worker, 'SIGHUP', 'config_read')
  }
  await change(3)
  await untilRunning(worker, 3)
  await change(1)
  await change(3)
  // Those that end when they are free count until then.
  expect((await healthOf(worker)).slots).toMatchObject({ total: 3, busy: 3 })
  letGo(home)
  await untilGone(home, ...jobs)
  await untilWaiting(home, 3)
  expect((await healthOf(worker)).slots).toEqual({ total: 3, idle: 3, busy: 0 })
  await change(1)
  await untilWaiting(home, 1)
  expect((await healthOf(worker)).slots.total).toBe(1)
  for (const { uuid } of jobs) expect(home.status(uuid)?.attempts).toHaveLength(1)
})

test('HUP moves to another broker: its jobs are taken, and the run in hand is settled on its own, over a broken line too', async () => {
  const home = await install()
  addRuns(home)
  const line = await startProxy(home.broker.port)
  const other = await startBroker()
  onTestFinished(() => other.stop())
  const { worker, write } = await startWithFile(home, { BEANSTALK_PORT: line.port, CONCURRENCY: 2 })
  const inHand = await putOne(home, 'waits')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  // The same number on both brokers: there it is another job.
  const body = `[{"uuid":"${newUuid()}","type":"waits"},{}]`
  expect(await other.ask(`put 0 1000 60 ${body.length}\r\n${body}\r\n`)).toBe(`INSERTED ${inHand.ticket}\r\n`)
  write({ BEANSTALK_PORT: other.port, CONCURRENCY: 2 })
  expect((await tell(worker, 'SIGHUP', 'config_read')).changed).toEqual(['BEANSTALK_PORT'])
  const uuid = newUuid()
  const fresh = `[{"uuid":"${uuid}","type":"ok"},{}]`
  await other.ask(`put 0 0 60 ${fresh.length}\r\n${fresh}\r\n`)
  await worker.waitFor('the job of the other broker', (event) => event.event === 'job_settled' && event.uuid === uuid)
  line.cut()
  await worker.waitFor('the ticket', ({ event }) => event === 'reservation_regained')
  const late = await putOne(home, 'ok')
  letGo(home)
  await untilGone(home, inHand)
  expect(home.status(inHand.uuid)).toMatchObject({ state: 'complete', attempts: [{ attempt: 1 }] })
  await until('both slots wait at the other broker', async () => (await other.stat('current-waiting')) === 2)
  expect(await home.ticketState(late.ticket)).toBe('ready')
})

test('HUP while a slot connects: what it connects to is not used any more', async () => {
  const home = await install()
  addRuns(home)
  const line = await startProxy(home.broker.port)
  const { worker, write } = await startWithFile(home, { BEANSTALK_PORT: line.port, TUBES: ['one'] })
  await untilWaiting(home, 1)
  line.holdFrom('stats')
  line.cut()
  await until('it connects', async () => (await healthOf(worker)).status === 'connecting')
  write({ BEANSTALK_PORT: line.port, TUBES: ['two'] })
  await tell(worker, 'SIGHUP', 'config_read')
  const former = await putOne(home, 'ok', { tube: 'one' })
  line.release()
  await until('it watches the new tube', async () => (await watchersOf(home, 'two')) === 1)
  await untilGone(home, await putOne(home, 'ok', { tube: 'two' }))
  expect(await home.ticketState(former.ticket)).toBe('ready')
})

test('an rc file that is broken or gone is refused with its faults, and the former settings stay', async () => {
  const home = await install()
  addRuns(home)
  const { worker, file, write } = await startWithFile(home, { TUBES: ['one'] })
  const work = async () => untilGone(home, await putOne(home, 'ok', { tube: 'one' }))
  const broken: [text: string, problems: RegExp[]][] = [
    ['TUBES: [two\nCONCURRENCY: 2', [/rc: bad YAML: /]],
    ['TUBE: two\nTUBEZ: [two]', [/rc: unknown key "?TUBEZ"?; did you mean TUBES?/]],
    ['TUBES: [two]\nCONCURRENCY: none\nGRACE_TIME: -1', [/rc: CONCURRENCY must be/, /rc: GRACE_TIME must be/]],
    ['- TUBES', [/rc: must hold lines like KEY: value/]],
  ]
  for (const [text, expected] of broken) {
    writeFileSync(file, text)
    const { problems, msg } = await tell(worker, 'SIGHUP', 'config_refused')
    expect(problems).toEqual(expected.map((problem) => expect.stringMatching(problem)))
    expect(msg).toContain('the former settings stay')
    await work()
  }
  rmSync(file)
  expect((await tell(worker, 'SIGHUP', 'config_refused')).problems).toEqual([expect.stringMatching(/rc: no such file/)])
  await work()
  expect(await watchersOf(home, 'two')).toBe(0)
  write({ TUBES: ['two'] })
  await tell(worker, 'SIGHUP', 'config_read')
  await untilGone(home, await putOne(home, 'ok', { tube: 'two' }))
})

test('keys that need a restart are named by HUP, and until then the former ones hold', async () => {
  const home = await install()
  addRuns(home)
  const { worker, write } = await startWithFile(home, { HTTP_PORT: 0 })
  const fixed = {
    RESULT_BASEDIR: join(home.base, 'elsewhere'),
    ...{ HTTP_HOST: '127.0.0.2', HTTP_PORT: 12345 },
    ...{
      S3_BUCKET: 'bucket',
      S3_PREFIX: 'p',
      S3_ENDPOINT: 'http://127.0.0.1:1',
      S3_REGION: 'r',
      S3_FORCE_PATH_STYLE: true,
    },
    ...{ LOG_LEVEL: 'error', LOG_FORMAT: 'text' },
  }
  // LOG_LEVEL and LOG_FORMAT are in the environment of every test, which stands above.
  write({ ...fixed, MAX_ATTEMPTS: 7 })
  const line = await tell(worker, 'SIGHUP', 'config_read')
  expect(line.changed).toEqual(['MAX_ATTEMPTS'])
  expect([line.need_restart].flat().sort()).toEqual(
    Object.keys(fixed)
      .filter((key) => !key.startsWith('LOG'))
      .sort(),
  )
  expect(line.msg).toMatch(/RESULT_BASEDIR.*restart|restart.*RESULT_BASEDIR/)
  const job = await putOne(home, 'ok')
  await untilGone(home, job)
  expect(home.result(job.uuid)).toBeDefined()
  expect(eventsOf(worker, 'job_published')[0]?.url).not.toContain('12345')
  expect((await fetch(worker.url + job.uuid)).status).toBe(200)
})

test('flags and environment stand above the rc file after HUP too', async () => {
  const home = await install()
  addRuns(home)
  home.addAlgorithm('bad', 'exit 9')
  const flags = ['-j', '2', '--tube', 'flagged']
  const { worker, write } = await startWithFile(home, {}, { MAX_ATTEMPTS: '1' }, flags)
  write({ CONCURRENCY: 7, TUBES: ['two'], MAX_ATTEMPTS: 9, RETRY_DELAY: 0 })
  expect((await tell(worker, 'SIGHUP', 'config_read')).changed).toEqual(['RETRY_DELAY'])
  const { uuid } = await putOne(home, 'bad', { tube: 'flagged' })
  await until('it is buried', () => home.status(uuid)?.state === 'failed')
  expect(home.status(uuid)?.reason).toBe('exit 9 (attempt 1 of 1)')
  expect((await healthOf(worker)).slots.total).toBe(2)
  expect(await watchersOf(home, 'two')).toBe(0)
})

test('of two HUPs at once the last file holds, though the first took longer to read', async () => {
  const home = await install()
  addRuns(home)
  const { worker, write } = await startWithFile(home, { TUBES: ['one'] })
  for (let i = 0; i < 400; i++) home.addAlgorithm(`many-${i}`, 'echo 1')
  const few = join(home.base, 'few')
  renameSync(join(home.algorithms, 'ok'), few)
  write({ TUBES: ['two'] })
  worker.child.kill('SIGHUP')
  // The signal was before this in its turn.
  await healthOf(worker)
  const one = join(home.base, 'few-algorithms')
  const { mkdirSync } = await import('node:fs')
  mkdirSync(one)
  renameSync(few, join(one, 'ok'))
  write({ TUBES: ['three'], ALGORITHM_DIRS: [one] })
  worker.child.kill('SIGHUP')
  await until('both were read', () => eventsOf(worker, 'algorithms_read').length === 2)
  await until('the last holds', async () => (await watchersOf(home, 'three')) === 1)
  expect(eventsOf(worker, 'algorithms_read').at(-1)?.algorithms).toEqual(['ok'])
  expect(await watchersOf(home, 'two')).toBe(0)
  await untilGone(home, await putOne(home, 'ok', { tube: 'three' }))
})
