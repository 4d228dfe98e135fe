import { appendFileSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { startBroker } from '../support/broker.ts'
import { type Installation, install, newUuid, type RunningWorker, until } from '../support/installation.ts'
import { startProxy } from '../support/proxy.ts'

/** An algorithm that notes each run and works until it is told to go. */
const WAITS =
  'echo "$QWORKER_ATTEMPT" >> "$(dirname "$0")/runs"; while ! test -e "$(dirname "$0")/go"; do sleep 0.05; done; echo 1'

function runsOf(home: Installation): number {
  return readFileSync(join(home.algorithms, 'waits', 'runs'), 'utf8')
    .trim()
    .split('\n').length
}

function letGo(home: Installation): void {
  appendFileSync(join(home.algorithms, 'waits', 'go'), '')
}

const published = (worker: RunningWorker) => worker.events.filter(({ event }) => event === 'job_published').length

test('a run whose reservation is gone (its touches were refused) is discarded and overwrites nothing; a second worker waits for its end (B3)', async () => {
  const home = await install({ CONCURRENCY: '1', GRACE_TIME: '60' })
  home.addAlgorithm('waits', WAITS)
  const proxy = await startProxy(home.broker.port)
  proxy.holdFrom('touch')
  const first = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"waits"},{}]`, { ttr: 1 })
  await first.waitFor('the run', ({ event }) => event === 'run_started')
  await until('it touches', () => proxy.isHolding())
  const second = await home.startWorker()
  // Without its touches the reservation of the first is over after a second, and the broker gives the job away; this
  // does not wait for it, since beanstalkd 1.12 sometimes never ends the reservation of a silent connection (its #262).
  proxy.renew()
  await second.waitFor('the job', ({ event }) => event === 'job_busy')
  expect(runsOf(home)).toBe(1)
  // The tube is paused, so that nobody holds the job while the first touches: it is refused all the same.
  await home.broker.ask('pause-tube default 3\r\n')
  proxy.release()
  await first.waitFor('the loss', (line) => line.event === 'run_ended' && line.outcome === 'lost')
  letGo(home)
  await until('the job is gone', async () => (await home.ticketState(ticket)) === 'gone')
  expect(home.status(uuid)?.attempts).toMatchObject([{ attempt: 1, outcome: 'success' }])
  expect(published(first) + published(second)).toBe(1)
  expect(runsOf(home)).toBe(2)
})

test('a run whose connection breaks goes on: its ticket is taken back, though another worker waits for jobs', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('waits', WAITS)
  const proxy = await startProxy(home.broker.port)
  const first = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  const second = await home.startWorker({ CONCURRENCY: '2' })
  // Whoever gets it keeps it.
  const before = home.broker.ask('pause-tube default 0\r\n')
  await before
  await second.child.kill('SIGTSTP')
  await second.waitFor('quiet', ({ event }) => event === 'worker_quiet')
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"waits"},{}]`, { ttr: 3 })
  await first.waitFor('the run', ({ event }) => event === 'run_started')
  second.child.kill('SIGCONT')
  await second.waitFor('jobs again', ({ event }) => event === 'worker_resumed')
  for (let cuts = 1; cuts <= 3; cuts++) {
    proxy.cut()
    const count = () => first.events.filter(({ event }) => event === 'reservation_regained').length
    await until('the ticket is taken back', () => count() === cuts)
  }
  letGo(home)
  await until('the job is gone', async () => (await home.ticketState(ticket)) === 'gone')
  expect(runsOf(home)).toBe(1)
  expect(published(first)).toBe(1)
  expect(home.status(uuid)?.attempts).toMatchObject([{ attempt: 1, outcome: 'success' }])
})

test('a broken line is noticed when it breaks, not at the next touch', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('waits', WAITS)
  const proxy = await startProxy(home.broker.port)
  const worker = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  const uuid = newUuid()
  await home.put(`[{"uuid":"${uuid}","type":"waits"},{}]`, { ttr: 600 })
  const started = await worker.waitFor('the run', ({ event }) => event === 'run_started')
  proxy.cut()
  const broken = await worker.waitFor('the notice', ({ event }) => event === 'reservation_broken')
  // The first touch is due 10 s after the start.
  expect(Date.parse(String(broken.time)) - Date.parse(String(started.time))).toBeLessThan(9_000)
  letGo(home)
  await until('the job is complete', () => home.result(uuid) !== undefined)
  expect(runsOf(home)).toBe(1)
})

test('a broker that is killed and comes back on its binlog spoils no run and loses no job', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('waits', WAITS)
  const dir = join(home.base, 'binlog')
  mkdirSync(dir)
  const broker = await startBroker({ dir })
  const worker = await home.startWorker({ BEANSTALK_PORT: String(broker.port) })
  const uuids = [newUuid(), newUuid(), newUuid()]
  for (const uuid of uuids) {
    const body = `[{"uuid":"${uuid}","type":"waits"},{}]`
    await broker.ask(`put 0 0 10 ${body.length}\r\n${body}\r\n`)
  }
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  await broker.kill('SIGKILL')
  await worker.waitFor('the loss of the broker', ({ event }) => event === 'reservation_broken')
  const again = await startBroker({ dir, port: broker.port })
  try {
    await worker.waitFor('the ticket', ({ event }) => event === 'reservation_regained')
    letGo(home)
    await until('all are complete', () => uuids.every((uuid) => home.status(uuid)?.state === 'complete'))
    await until('the broker agrees', async () => (await again.stat('current-jobs-ready')) === 0)
    expect(runsOf(home)).toBe(uuids.length)
    for (const uuid of uuids) expect(home.status(uuid)?.attempts).toHaveLength(1)
    await worker.stop()
  } finally {
    await again.stop()
  }
})

test('after a restart without a binlog the ticket may name another job: that one is given back, and ours is lost', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('waits', WAITS)
  home.addAlgorithm('other', 'echo 2')
  const broker = await startBroker()
  const proxy = await startProxy(broker.port)
  const worker = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  const putOn = (uuid: string, type: string) => {
    const body = `[{"uuid":"${uuid}","type":"${type}"},{}]`
    return { body, line: `put 0 0 10 ${body.length}\r\n${body}\r\n` }
  }
  const uuid = newUuid()
  expect(await broker.ask(putOn(uuid, 'waits').line)).toBe('INSERTED 1\r\n')
  await worker.waitFor('the run', ({ event }) => event === 'run_started')
  // It asks for its ticket when the other job has the number.
  proxy.holdFrom('reserve-job')
  await broker.kill('SIGKILL')
  const again = await startBroker({ port: broker.port })
  try {
    const other = newUuid()
    expect(await again.ask(putOn(other, 'other').line)).toBe('INSERTED 1\r\n')
    proxy.release()
    const ended = await worker.waitFor('the loss', (line) => line.event === 'run_ended' && line.uuid === uuid)
    expect(ended).toMatchObject({ outcome: 'lost', error: expect.stringContaining('another job') })
    await until('the other job is complete', () => home.status(other)?.state === 'complete')
    expect(home.result(uuid)).toBeUndefined()
    await worker.stop()
  } finally {
    await again.stop()
  }
})

test('a run that another worker has meanwhile is ended after 10 s, and its output is discarded', async () => {
  const home = await install({ CONCURRENCY: '1' })
  const elsewhere = await install({ CONCURRENCY: '1', BEANSTALK_PORT: String(home.broker.port) })
  for (const each of [home, elsewhere]) each.addAlgorithm('waits', WAITS)
  const proxy = await startProxy(home.broker.port)
  const first = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  const uuid = newUuid()
  await home.put(`[{"uuid":"${uuid}","type":"waits"},{}]`, { ttr: 30 })
  await first.waitFor('the run', ({ event }) => event === 'run_started')
  // A worker of another host: it does not share the tracker.
  const second = await elsewhere.startWorker()
  await until('it waits for jobs', async () => (await home.broker.stat('current-waiting')) === 1)
  proxy.cut()
  await second.waitFor('its run', ({ event }) => event === 'run_started')
  const lost = await first.waitFor('the loss', (line) => line.event === 'run_ended')
  expect(lost).toMatchObject({ outcome: 'lost', error: expect.stringContaining('within 10 s') })
  letGo(elsewhere)
  await second.waitFor('its publication', ({ event }) => event === 'job_published')
  expect(home.result(uuid)).toBeUndefined()
  expect(home.status(uuid)).toBeUndefined()
}, 90_000)

test('a slot that waits for a job notices within 30 s that its peer is dead, without a word from it', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('ok', 'echo 1')
  const proxy = await startProxy(home.broker.port)
  const worker = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  await until('it waits for jobs', async () => (await home.broker.stat('current-waiting')) === 1)
  const began = performance.now()
  proxy.silence()
  await worker.waitFor('the loss', ({ event }) => event === 'broker_lost')
  expect(Math.round((performance.now() - began) / 1000)).toBeLessThan(40)
  console.log(`noticed after ${Math.round((performance.now() - began) / 1000)} s`)
  proxy.cut()
  const uuid = await home.putJob('ok')
  await until('it works again', () => home.status(uuid)?.state === 'complete')
}, 120_000)
