import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { findRuns, type Installation, install, newUuid, type RunningWorker, until } from '../support/installation.ts'
import { startProxy } from '../support/proxy.ts'

const NOTES = 'echo "$QWORKER_ATTEMPT" >> "$(dirname "$0")/runs"; echo x > "by-$QWORKER_ATTEMPT.txt"'
const RESULT = 'echo "$QWORKER_ATTEMPT"'
/** TTR: the run's limit too, and a frozen worker's attempt is another's 30 s after it. */
const TTR_SECONDS = 5
const OVERDUE_SECONDS = 120

const runsOf = (home: Installation) =>
  readFileSync(join(home.algorithms, 'job', 'runs'), 'utf8')
    .trim()
    .split('\n').length
const published = ({ events }: RunningWorker, uuid: string) =>
  events.filter((line) => line.event === 'job_published' && line.uuid === uuid).length
const folderOf = (home: Installation, uuid: string) => join(home.results, uuid.slice(0, 2), uuid)

function readAll(home: Installation, uuid: string): Record<string, string> {
  const folder = folderOf(home, uuid)
  return Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), 'utf8')]))
}

async function freeze({ child, pid }: RunningWorker): Promise<void> {
  child.kill('SIGSTOP')
  await until('it is stopped', () => isStopped(pid))
}

function isStopped(pid: number): boolean {
  return /^State:\tT/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'))
}

test('a worker that is stopped right before it publishes and goes on soon takes its job back: it ran once, and another gave it back meanwhile', async () => {
  const home = await install({ CONCURRENCY: '1', GRACE_TIME: '0' })
  home.addAlgorithm('job', `${NOTES}; sleep 0.3; ${RESULT}`)
  const proxy = await startProxy(home.broker.port)
  proxy.holdFrom('touch')
  const first = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: 60 })
  await first.waitFor('the end of the run', ({ event }) => event === 'run_ended')
  await until('its last question is on its way', () => proxy.isHolding())
  await freeze(first)
  const second = await home.startWorker()
  proxy.cut()
  proxy.release()
  await second.waitFor('the job', (line) => line.event === 'job_busy')
  first.child.kill('SIGCONT')
  await until('the job is gone', async () => (await home.ticketState(ticket)) === 'gone')
  expect([published(first, uuid), published(second, uuid)]).toEqual([1, 0])
  expect(runsOf(home)).toBe(1)
  expect(home.status(uuid)?.attempts).toMatchObject([{ attempt: 1, outcome: 'success' }])
}, 180_000)

test('the run of a worker that stays stopped is ended by another, which runs the job again; going on, the first changes nothing', async () => {
  const home = await install({ CONCURRENCY: '1', GRACE_TIME: '0' })
  home.addAlgorithm(
    'job',
    `${NOTES}; [ "$QWORKER_ATTEMPT" = 1 ] || { ${RESULT}; exit; }
worker=\${QWORKER_RUN#w}; kill -STOP "\${worker%%-*}"; setsid sleep 300 & exec sleep 300`,
  )
  home.addAlgorithm('other', 'echo 1')
  const proxy = await startProxy(home.broker.port)
  const first = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: TTR_SECONDS })
  await until('it has stopped its worker', () => isStopped(first.pid))
  const second = await home.startWorker()
  proxy.cut()
  await second.waitFor('the job', ({ event }) => event === 'job_busy')
  expect(findRuns(home.results).length).toBeGreaterThan(0)
  expect(second.events.some(({ event }) => event === 'job_dequeued')).toBe(false)
  await second.waitFor('its turn', ({ event }) => event === 'run_ended')
  expect(findRuns(home.results)).toEqual([])
  await until('the job is gone', async () => (await home.ticketState(ticket)) === 'gone')
  const before = readAll(home, uuid)
  expect(Object.keys(before).sort()).toEqual(['by-2.txt', 'result.json', 'status.json', 'stderr.log', 'stdout.log'])
  expect(home.result(uuid)).toMatchObject({ attempt: 2, result: 2, files: [{ name: 'by-2.txt' }] })
  expect(home.status(uuid)?.attempts).toMatchObject([
    { attempt: 1, outcome: 'abandoned', error: 'its worker lives and does not answer' },
    { attempt: 2, outcome: 'success' },
  ])
  first.child.kill('SIGCONT')
  const end = await first.waitFor('its end', (line) => line.event === 'job_settled' && line.uuid === uuid)
  expect(end).toMatchObject({ settlement: { action: 'none' }, msg: expect.stringContaining('no longer ours') })
  await second.stop()
  const other = await home.putJob('other')
  await until('the first works on', () => home.status(other)?.state === 'complete')
  expect(readAll(home, uuid)).toEqual(before)
  expect(published(first, uuid)).toBe(0)
  expect(runsOf(home)).toBe(2)
}, 240_000)

test.each([
  // Before the directory of the job gets its name.
  { what: 'its first publication', failed: 0, questions: 1 },
  // Before files get their names, and before the result does; the attempt that failed was asked for as well.
  { what: 'one that follows a failure', failed: 1, questions: 3 },
])(
  "a worker that stays stopped in the middle of $what publishes nothing when it goes on: the result is that of the other, and no file is the first one's",
  async ({ failed, questions }) => {
    const home = await install({ CONCURRENCY: '1', GRACE_TIME: '0', RETRY_DELAY: '0' })
    home.addAlgorithm('job', `${NOTES}; sleep 0.3; [ "$QWORKER_ATTEMPT" -gt ${failed} ] || exit 1; ${RESULT}`)
    home.addAlgorithm('other', 'echo 1')
    const proxy = await startProxy(home.broker.port)
    proxy.holdFrom('touch', questions - 1)
    const uuid = newUuid()
    // Before its worker: one that had waited for the job would have asked when it came.
    const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: TTR_SECONDS })
    const first = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
    const stopped = failed + 1
    await first.waitFor('the end of the run', (line) => line.event === 'run_ended' && line.attempt === stopped)
    await until('its last question is on its way', () => proxy.isHolding())
    await freeze(first)
    if (failed === 0) expect(existsSync(folderOf(home, uuid))).toBe(false)
    else expect(readdirSync(folderOf(home, uuid))).toContain('.publishing')
    expect(home.result(uuid)).toBeUndefined()
    const second = await home.startWorker()
    proxy.cut()
    proxy.release()
    await second.waitFor('the job', ({ event }) => event === 'job_busy')
    await second.waitFor('its turn', ({ event }) => event === 'run_ended')
    if (failed > 0) expect(home.result(uuid)).toBeUndefined()
    else await second.waitFor('its result', ({ event }) => event === 'job_published')
    first.child.kill('SIGCONT')
    await until('the job is gone', async () => (await home.ticketState(ticket)) === 'gone', OVERDUE_SECONDS)
    expect([published(first, uuid), published(second, uuid)]).toEqual([0, 1])
    const last = stopped + 1
    const output = `by-${last}.txt`
    expect(home.result(uuid)).toMatchObject({ attempt: last, result: last, files: [{ name: output }] })
    expect(home.status(uuid)?.attempts.slice(failed)).toMatchObject([
      { attempt: stopped, outcome: 'abandoned' },
      { attempt: last, outcome: 'success' },
    ])
    const before = readAll(home, uuid)
    expect(Object.keys(before).sort()).toEqual([output, 'result.json', 'status.json', 'stderr.log', 'stdout.log'])
    const end = await first.waitFor('its end', (line) => line.event === 'job_settled' && line.attempt === stopped)
    expect(end).toMatchObject({ settlement: { action: 'none' }, msg: expect.stringContaining('no longer ours') })
    await second.stop()
    const other = await home.putJob('other')
    await until('the first works on', () => home.status(other)?.state === 'complete')
    expect(readAll(home, uuid)).toEqual(before)
    expect(runsOf(home)).toBe(last)
  },
  240_000,
)

test('a worker that is stopped while it waits does not publish the job that came meanwhile, and is with another that knows nothing of it', async () => {
  const home = await install({ CONCURRENCY: '1', GRACE_TIME: '0' })
  const go = join(home.base, 'go')
  home.addAlgorithm('job', `case $PWD in */elsewhere/*) until [ -e ${go} ]; do sleep 0.1; done;; esac; echo 1`)
  home.addAlgorithm('other', 'echo 2')
  const proxy = await startProxy(home.broker.port)
  const first = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  const work = async () => {
    const other = await home.putJob('other')
    await until('the first works', () => home.status(other)?.state === 'complete')
  }
  await work()
  await until('it waits', async () => (await home.broker.stat('current-waiting')) === 1)
  await freeze(first)
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: 60 })
  await until('it is reserved', async () => (await home.ticketState(ticket)) === 'reserved')
  // What the broker says of it is on its way to the stopped worker; as when its time was over, it is another's now.
  await new Promise((resolve) => setTimeout(resolve, 200))
  proxy.renew()
  const elsewhere = join(home.base, 'elsewhere')
  mkdirSync(elsewhere)
  const second = await home.startWorker({ RESULT_BASEDIR: elsewhere })
  await second.waitFor('the job', ({ event }) => event === 'run_started')
  first.child.kill('SIGCONT')
  await first.waitFor('the job', (line) => line.event === 'job_dequeued' && line.uuid === uuid)
  await work()
  expect(published(first, uuid)).toBe(0)
  writeFileSync(go, '')
  await until('the job is gone', async () => (await home.ticketState(ticket)) === 'gone')
  expect(published(second, uuid)).toBe(1)
}, 60_000)
