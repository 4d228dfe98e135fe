import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { isOnBeanstalkd, startBroker, type TestBroker } from '../support/broker.ts'
import { findRuns, type Installation, install, newUuid, until } from '../support/installation.ts'

/** An algorithm that kills its worker, whose number the run's mark begins with, before it does anything else. */
const POISON = `worker=\${QWORKER_RUN#w}
echo "attempt $QWORKER_ATTEMPT" >&2
echo run >> "$(dirname "$0")/runs"
kill -9 "\${worker%%-*}"
exec sleep 300`

const MAX_ATTEMPTS = 3
/** So often a worker is started again by whoever looks after it. */
const LIVES = MAX_ATTEMPTS + 2

function runsOf(home: Installation, type: string): number {
  const path = join(home.algorithms, type, 'runs')
  return existsSync(path) ? readFileSync(path, 'utf8').trim().split('\n').length : 0
}

/** As the guard of a dead worker leaves its folder. */
function guardsAreDone(home: Installation): boolean {
  const work = join(home.results, '.work')
  return (
    findRuns(home.results).length === 0 && readdirSync(work).every((id) => existsSync(join(work, id, 'ended.json')))
  )
}

function expectPoisoned(home: Installation, uuid: string): void {
  const status = home.status(uuid)
  expect(status).toMatchObject({
    state: 'failed',
    reason: expect.stringMatching(/^all 3 attempts are spent; in 3 of them the worker died: the job may be what kills/),
  })
  expect(status?.attempts.map(({ attempt, outcome, stderr_tail }) => [attempt, outcome, stderr_tail])).toEqual(
    [1, 2, 3].map((attempt) => [attempt, 'abandoned', `attempt ${attempt}\n`]),
  )
  expect(runsOf(home, 'poison')).toBe(MAX_ATTEMPTS)
}

async function startBinlogBroker(home: Installation, port?: number): Promise<TestBroker> {
  const binlog = join(home.base, 'binlog')
  mkdirSync(binlog, { recursive: true })
  const broker = await startBroker({ dir: binlog, ...(port === undefined ? {} : { port }) })
  onTestFinished(() => broker.stop())
  return broker
}

test('a job that kills its worker each time is buried after its last attempt and says so, though the broker is killed each time too', async () => {
  const home = await install({ CONCURRENCY: '1', MAX_ATTEMPTS: String(MAX_ATTEMPTS), GRACE_TIME: '600' })
  home.addAlgorithm('poison', POISON)
  let broker = await startBinlogBroker(home)
  const uuid = newUuid()
  const body = `[{"uuid":"${uuid}","type":"poison"},{}]`
  await broker.ask(`put 0 0 60 ${body.length}\r\n${body}\r\n`)
  for (let life = 1; life <= LIVES && home.status(uuid)?.state !== 'failed'; life++) {
    const worker = await home.startWorker({ BEANSTALK_PORT: String(broker.port) })
    if (life > MAX_ATTEMPTS) {
      await Promise.race([worker.exited, until('the burial', () => home.status(uuid)?.state === 'failed')])
      continue
    }
    await worker.exited
    await until('the end of the run', () => guardsAreDone(home))
    await broker.kill('SIGKILL')
    broker = await startBinlogBroker(home, broker.port)
    // beanstalkd knows nothing of the tries any more; the embedded broker does.
    const reserves = isOnBeanstalkd ? /^reserves: 0$/m : /^reserves: 2$/m
    if (life === 2) expect(await broker.ask('stats-job 1\r\n', /\n\r\n$/)).toMatch(reserves)
  }
  expectPoisoned(home, uuid)
  for (const { kill } of home.status(uuid)?.attempts ?? []) {
    expect(kill).toMatchObject({ signals: [{ signal: 'SIGKILL' }], survivors: [] })
  }
  await until('the broker has buried it', async () => (await broker.stat('current-jobs-buried')) === 1)
}, 180_000)

test('a job that kills its worker each time is buried after its last attempt when other workers live on and take it at once', async () => {
  const home = await install({ CONCURRENCY: '1', MAX_ATTEMPTS: String(MAX_ATTEMPTS), GRACE_TIME: '600' })
  home.addAlgorithm('poison', POISON)
  home.addAlgorithm('good', 'echo 1')
  let deaths = 0
  let isOver = false
  const keepAlive = async () => {
    while (!isOver && deaths < LIVES) {
      const worker = await home.startWorker()
      void worker.exited.then(([, signal]) => {
        if (signal === 'SIGKILL') deaths++
      })
      await Promise.race([worker.exited, until('the end of the test', () => isOver)])
    }
  }
  const ticket = await home.put(`[{"uuid":"${newUuid()}","type":"good"},{}]`)
  const both = [keepAlive(), keepAlive()]
  await until('a worker works', async () => (await home.ticketState(ticket)) === 'gone')
  const uuid = await home.putJob('poison', {}, { ttr: 60 })
  const good = await home.putJob('good', {}, { ttr: 60 })
  await until('the burial', () => home.status(uuid)?.state === 'failed' || deaths >= LIVES)
  await until('the other job', () => home.status(good)?.state === 'complete')
  isOver = true
  await Promise.all(both)
  expectPoisoned(home, uuid)
  expect(deaths).toBe(MAX_ATTEMPTS)
}, 180_000)

test('a worker that is killed as soon as its run has started has spent one attempt, and one only', async () => {
  const home = await install({ CONCURRENCY: '1', GRACE_TIME: '600' })
  home.addAlgorithm('once', `[ "$QWORKER_ATTEMPT" = 1 ] || { echo "$QWORKER_ATTEMPT"; exit; }\n${POISON}`)
  const first = await home.startWorker()
  const uuid = await home.putJob('once', {}, { ttr: 60 })
  await first.exited
  await until('the end of the run', () => guardsAreDone(home))
  await home.startWorker()
  await until('its result', () => home.result(uuid) !== undefined)
  expect(home.status(uuid)?.attempts).toMatchObject([
    { attempt: 1, outcome: 'abandoned', stderr_tail: 'attempt 1\n', kill: { survivors: [] } },
    { attempt: 2, outcome: 'success' },
  ])
  expect(runsOf(home, 'once')).toBe(1)
  expect(home.result(uuid)?.result).toBe(2)
}, 180_000)
