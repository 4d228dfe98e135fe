import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'libsql'
import { expect, test } from 'vitest'
import { type Installation, install, newUuid, type RunningWorker, until } from '../support/installation.ts'
import { startProxy } from '../support/proxy.ts'
import { type S3Mood, startS3 } from '../support/s3.ts'

const NOTES = 'echo "$QWORKER_UUID" >> "$(dirname "$0")/runs"'

function runsOf(home: Installation): string[] {
  const path = join(home.algorithms, 'job', 'runs')
  return existsSync(path) ? readFileSync(path, 'utf8').trim().split('\n') : []
}

async function outboxOf(worker: RunningWorker): Promise<{ length: number; oldest: string | null; error?: string }> {
  const health = (await (await fetch(`${worker.url}healthz`)).json()) as { outbox: { length: number; oldest: string } }
  return health.outbox
}

const isIn = (home: Installation) => async (uuid: string) => home.status(uuid)?.s3?.state === 'published'

async function allAre(uuids: readonly string[], is: (uuid: string) => Promise<boolean>): Promise<boolean> {
  return (await Promise.all(uuids.map(is))).every(Boolean)
}

/** A whole number of jobs, one after the other, so that the outbox knows their order. */
async function putInOrder(home: Installation, worker: RunningWorker, count: number): Promise<string[]> {
  const uuids: string[] = []
  for (let i = 0; i < count; i++) {
    const uuid = await home.putJob('job', {}, { ttr: 60 })
    await worker.waitFor(
      'its end',
      ({ event, uuid: ended, settlement }) =>
        event === 'job_settled' && ended === uuid && (settlement as { action: string }).action === 'delete',
    )
    uuids.push(uuid)
  }
  return uuids
}

test.each<S3Mood>(['down', 'broken', 'hangs', 'truncates'])(
  'while S3 %s, a job leaves the queue after S3_PATIENCE, runs once and is served; its copy follows, and the health tells what waits',
  async (mood) => {
    const home = await install({ CONCURRENCY: '1' })
    home.addAlgorithm('job', `${NOTES}; echo 1`)
    const s3 = await startS3()
    const worker = await home.startWorker(s3.env)
    s3.mood = mood
    const uuid = newUuid()
    const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: 60 })
    await worker.waitFor('its end', ({ event }) => event === 'job_settled')
    expect(await home.ticketState(ticket)).toBe('gone')
    expect(home.status(uuid)).toMatchObject({ state: 'complete', s3: { state: 'pending' } })
    expect((await fetch(worker.url + uuid)).status).toBe(200)
    await until('the health tells it', async () => (await outboxOf(worker)).length === 1)
    if (mood !== 'hangs') {
      expect(await worker.waitFor('the length', ({ event }) => event === 'outbox_length')).toMatchObject({ length: 1 })
      expect((await outboxOf(worker)).error).toMatch(/^S3 bucket results at 127/)
    }
    expect(s3.results).toEqual([])
    s3.mood = 'up'
    await until('the copy', () => home.status(uuid)?.s3?.state === 'published')
    await until('the health tells it', async () => (await outboxOf(worker)).length === 0)
    expect(await s3.get(uuid, 'result.json')).toBe(await (await fetch(`${worker.url}${uuid}/result.json`)).text())
    expect(JSON.parse((await s3.get(uuid, 'status.json')) ?? '')).toMatchObject({ s3: { state: 'published' } })
    expect(runsOf(home)).toEqual([uuid])
  },
  120_000,
)

test('copies survive a worker that is killed while S3 is away: started again it takes jobs, and when S3 is back they go there, the oldest first', async () => {
  const COUNT = 16
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('job', `${NOTES}; echo 1`)
  const s3 = await startS3()
  const first = await home.startWorker(s3.env)
  s3.mood = 'broken'
  const uuids = await putInOrder(home, first, COUNT - 1)
  first.child.kill('SIGKILL')
  await first.exited
  const second = await home.startWorker(s3.env)
  uuids.push(...(await putInOrder(home, second, 1)))
  // It has found out for itself, and several tries have failed.
  const tried = () => second.events.filter(({ event }) => event === 'outbox_retry').map(({ uuid }) => uuid)
  // Between two rounds, of which each begins with the oldest.
  await until('many tries', () => {
    const [oldest] = uuids
    return tried().filter((uuid) => uuid === oldest).length >= 3 && tried().at(-1) !== oldest
  })
  expect(await outboxOf(second)).toMatchObject({ length: COUNT })
  s3.mood = 'up'
  await until('all copies', () => allAre(uuids, isIn(home)), 120)
  const order = s3.results.map((uuid) => uuids.indexOf(uuid))
  expect([...order].sort((a, b) => a - b)).toEqual(uuids.map((_, index) => index))
  expect(order[0]).toBe(0)
  // Four at a time; and the second oldest may have been tried with the oldest and wait a little.
  for (const [place, index] of order.entries()) expect(index, order.join(' ')).toBeLessThanOrEqual(place + 5)
  expect(runsOf(home)).toEqual(uuids)
}, 240_000)

test('a worker starts while S3 cannot be reached when copies wait for it, and says so; with nothing to copy it does not start', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('job', `${NOTES}; echo 1`)
  const s3 = await startS3()
  s3.mood = 'down'
  await expect(home.startWorker(s3.env)).rejects.toThrow(/worker ended \(69\).*S3 bucket results/s)
  s3.mood = 'up'
  const first = await home.startWorker(s3.env)
  s3.mood = 'down'
  await putInOrder(home, first, 1)
  first.child.kill('SIGKILL')
  await first.exited
  const second = await home.startWorker(s3.env)
  const problem = second.events.find(({ event }) => event === 'worker_problem')
  expect(problem).toMatchObject({ problem: expect.stringContaining('S3 bucket results') })
  await putInOrder(home, second, 1)
}, 120_000)

test('a second SIGTERM does not wait for an S3 that hangs; the next worker copies', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('job', `${NOTES}; echo 1`)
  const s3 = await startS3()
  const env = { ...s3.env, S3_PATIENCE: '3600', DRAIN_TIME: '3600' }
  const first = await home.startWorker(env)
  s3.mood = 'hangs'
  const uuid = await home.putJob('job', {}, { ttr: 60 })
  await until('the copy hangs', () => s3.spoiled() > 0)
  first.child.kill('SIGTERM')
  await first.waitFor('the first', ({ event }) => event === 'worker_draining')
  expect(first.events.some(({ event }) => event === 'job_settled')).toBe(false)
  first.child.kill('SIGTERM')
  expect((await first.exited)[0]).toBe(0)
  expect(first.events.find(({ event }) => event === 'job_settled')).toMatchObject({ settlement: { action: 'delete' } })
  // Not even one try was waited for.
  expect(first.events.filter(({ event }) => event === 'outbox_retry')).toEqual([])
  s3.mood = 'up'
  await home.startWorker(env)
  await until('the copy', () => home.status(uuid)?.s3?.state === 'published')
  expect(runsOf(home)).toEqual([uuid])
}, 180_000)

test('workers share the outbox: what one of them had in hand when it was killed is copied by the other, and nothing twice', async () => {
  const home = await install({ CONCURRENCY: '2' })
  home.addAlgorithm('job', `${NOTES}; echo 1`)
  const s3 = await startS3()
  const first = await home.startWorker(s3.env)
  const second = await home.startWorker(s3.env)
  s3.mood = 'hangs'
  const uuids = await Promise.all(Array.from({ length: 12 }, () => home.putJob('job', {}, { ttr: 60 })))
  await until('all have run', () => uuids.every((uuid) => home.status(uuid)?.state === 'complete'))
  await until('both copy', () => s3.spoiled() >= 8)
  first.child.kill('SIGKILL')
  await first.exited
  s3.mood = 'up'
  await until('all copies', () => allAre(uuids, isIn(home)), 120)
  expect([...s3.results].sort()).toEqual([...uuids].sort())
  await until('nothing waits', async () => (await outboxOf(second)).length === 0)
  expect(runsOf(home).sort()).toEqual([...uuids].sort())
}, 240_000)

test('a copy whose failure cannot be written down is tried again all the same', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('job', `${NOTES}; echo 1`)
  const s3 = await startS3()
  const worker = await home.startWorker({ ...s3.env, S3_PATIENCE: '0' })
  const tracker = new Database(join(home.results, '.state', 'tracker.db'))
  tracker.exec("CREATE TRIGGER full BEFORE UPDATE OF tries ON outbox BEGIN SELECT raise(ABORT, 'no room'); END")
  s3.mood = 'broken'
  const uuid = await home.putJob('job', {}, { ttr: 60 })
  await worker.waitFor('the fault', ({ event, error }) => event === 'outbox_failed' && /no room/.test(String(error)))
  tracker.exec('DROP TRIGGER full')
  tracker.close()
  s3.mood = 'up'
  await until('the copy', () => home.status(uuid)?.s3?.state === 'published')
  expect(runsOf(home)).toEqual([uuid])
}, 60_000)

test.each([400, 500])(
  'an entry that always fails with HTTP %i holds no other up, and is copied when its cause is gone',
  async (status) => {
    const home = await install({ CONCURRENCY: '1' })
    home.addAlgorithm('job', `${NOTES}; echo 1`)
    const s3 = await startS3()
    const worker = await home.startWorker({ ...s3.env, S3_PATIENCE: '0' })
    const bad = newUuid()
    s3.refused.set(bad, status)
    await home.putJob('job', {}, { uuid: bad, ttr: 60 })
    await worker.waitFor('its failure', ({ event, tries }) => event === 'outbox_retry' && Number(tries) >= 2)
    const others = await putInOrder(home, worker, 6)
    await until('the others', () => allAre(others, isIn(home)))
    await until('only it waits', async () => (await outboxOf(worker)).length === 1)
    expect(home.status(bad)?.s3?.state).toBe('pending')
    s3.refused.clear()
    await until('the copy', () => home.status(bad)?.s3?.state === 'published', 90)
    expect(runsOf(home).sort()).toEqual([bad, ...others].sort())
  },
  180_000,
)

test('a job that was tried before is not held up by an S3 that hangs when it is asked for what it knows of it', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('job', `${NOTES}; [ "$QWORKER_ATTEMPT" = 2 ] || exit 9; echo 1`)
  const s3 = await startS3()
  const worker = await home.startWorker(s3.env)
  s3.mood = 'hangs'
  const uuid = await home.putJob('job', {}, { ttr: 60 })
  await worker.waitFor('its end', (line) => line.event === 'job_settled' && line.attempt === 2)
  expect(home.status(uuid)).toMatchObject({ state: 'complete' })
  // A client of S3 gives a request up after 20 s, and asks again.
  expect(s3.asked.filter((line) => line === `GET ${uuid}/status.json`)).toHaveLength(1)
}, 180_000)

test('of two hosts that run a job the first copy in the bucket stays: the late one keeps its own, says so, and changes nothing there', async () => {
  const home = await install({ CONCURRENCY: '1' })
  const elsewhere = await install({ CONCURRENCY: '1', BEANSTALK_PORT: String(home.broker.port) })
  home.addAlgorithm('job', `${NOTES}; echo '"late"'`)
  elsewhere.addAlgorithm('job', `${NOTES}; echo '"first"'`)
  const s3 = await startS3()
  const line = await startProxy(s3.port)
  const proxy = await startProxy(home.broker.port)
  const first = await home.startWorker({
    ...s3.env,
    S3_PATIENCE: '3600',
    S3_ENDPOINT: `http://127.0.0.1:${line.port}`,
    BEANSTALK_PORT: String(proxy.port),
  })
  line.holdFrom('GET')
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: 60 })
  await first.waitFor('its publication', ({ event }) => event === 'job_published')
  await until('its copy is on its way', () => line.isHolding())
  const second = await elsewhere.startWorker(s3.env)
  // The first has lost its broker: the job is given to another host.
  proxy.holdFrom('reserve-job')
  proxy.cut()
  await second.waitFor('its end', ({ event }) => event === 'job_settled')
  await until('the job is gone', async () => (await home.ticketState(ticket)) === 'gone')
  const names = ['result.json', 'status.json', 'stdout.log', 'stderr.log']
  const read = () => Promise.all(names.map((name) => s3.get(uuid, name)))
  const before = await read()
  expect(JSON.parse(before[0] ?? '')).toMatchObject({ result: 'first' })
  line.release()
  proxy.release()
  await until('the late one', () => home.status(uuid)?.s3?.state === 'published')
  expect(home.status(uuid)?.s3?.error).toMatch(/another host published this job first/)
  expect(home.result(uuid)).toMatchObject({ result: 'late' })
  expect(await read()).toEqual(before)
}, 120_000)
