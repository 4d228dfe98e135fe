import { appendFileSync, existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { openTracker, sqliteUrl } from '../../src/tracker/tracker.ts'
import { type Installation, install, newUuid, type RunningWorker, until } from '../support/installation.ts'
import { startProxy } from '../support/proxy.ts'
import { startS3 } from '../support/s3.ts'
import { holdTracker } from '../support/transaction.ts'

const NOTES = 'echo run >> "$(dirname "$0")/runs"'
const WAITS = `${NOTES}; while ! test -e "$(dirname "$0")/go"; do sleep 0.05; done`

function runsOf(home: Installation, type: string): number {
  return readFileSync(join(home.algorithms, type, 'runs'), 'utf8')
    .trim()
    .split('\n').length
}

function letGo(home: Installation, type: string): void {
  appendFileSync(join(home.algorithms, type, 'go'), '')
}

async function kill(worker: RunningWorker): Promise<void> {
  worker.child.kill('SIGKILL')
  await worker.exited
}

test('a worker is killed between the commit of a result and the delete, while S3 is away: the job comes again, is deleted and not run, and is copied', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('job', `${NOTES}; echo 1`)
  const s3 = await startS3()
  const proxy = await startProxy(home.broker.port)
  proxy.holdFrom('delete')
  const env = { ...s3.env, S3_PATIENCE: '0' }
  const first = await home.startWorker({ ...env, BEANSTALK_PORT: String(proxy.port) })
  s3.mood = 'broken'
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: 60 })
  await until('the delete is on its way', () => proxy.isHolding())
  const text = JSON.stringify(home.result(uuid))
  await kill(first)
  expect(await home.ticketState(ticket)).toBe('ready')
  s3.mood = 'up'
  const second = await home.startWorker(env)
  await second.waitFor('the job', (line) => line.event === 'job_already_complete' && line.uuid === uuid)
  await until('the job is gone', async () => (await home.ticketState(ticket)) === 'gone')
  await until('the copy', () => home.status(uuid)?.s3?.state === 'published')
  expect(JSON.stringify(home.result(uuid))).toBe(text)
  expect(JSON.stringify(JSON.parse((await s3.get(uuid, 'result.json')) ?? ''))).toBe(text)
  expect(runsOf(home, 'job')).toBe(1)
}, 180_000)

test('a worker is killed between the commit of a result and its note in the tracker: the job comes again, is deleted and not run, and is copied', async () => {
  const home = await install({ CONCURRENCY: '1' })
  home.addAlgorithm('job', `${WAITS}; echo 1`)
  const s3 = await startS3()
  const first = await home.startWorker(s3.env)
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: 60 })
  await first.waitFor('the run', ({ event }) => event === 'run_started')
  const release = await holdTracker(home.results)
  letGo(home, 'job')
  await until('the result', () => home.result(uuid) !== undefined)
  await kill(first)
  await release()
  expect(await home.ticketState(ticket)).toBe('ready')
  expect(s3.results).toEqual([])
  const second = await home.startWorker(s3.env)
  await second.waitFor('the job', (line) => line.event === 'job_already_complete' && line.uuid === uuid)
  await until('the job is gone', async () => (await home.ticketState(ticket)) === 'gone')
  await until('the copy', () => home.status(uuid)?.s3?.state === 'published')
  expect(s3.results).toEqual([uuid])
  expect(runsOf(home, 'job')).toBe(1)
  const tracker = await openTracker(sqliteUrl(join(home.results, '.state', 'tracker.db')))
  onTestFinished(() => tracker.close())
  const attempts = (await tracker.read(uuid))?.attempts ?? []
  expect(attempts.map(({ record }) => JSON.parse(record ?? '') as unknown)).toEqual(home.status(uuid)?.attempts)
}, 180_000)

/** A job whose only attempt failed with 9, and whose worker cannot tell the broker so. */
async function failUnburied(): Promise<{ home: Installation; first: RunningWorker; uuid: string; ticket: string }> {
  const home = await install({ CONCURRENCY: '1', MAX_ATTEMPTS: '1' })
  home.addAlgorithm('job', `${NOTES}; exit 9`)
  const proxy = await startProxy(home.broker.port)
  proxy.holdFrom('bury')
  const first = await home.startWorker({ BEANSTALK_PORT: String(proxy.port) })
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: 60 })
  await until('the burial is on its way', () => proxy.isHolding())
  return { home, first, uuid, ticket }
}

test('a worker is killed between the note of a failure and the burial: the job is buried at once and not run; kicked by hand it begins anew', async () => {
  const { home, first, uuid, ticket } = await failUnburied()
  const before = home.status(uuid)
  expect(before).toMatchObject({ state: 'failed', reason: 'exit 9 (attempt 1 of 1)' })
  await kill(first)
  expect(await home.ticketState(ticket)).toBe('ready')
  const second = await home.startWorker()
  await until('the burial', async () => (await home.ticketState(ticket)) === 'buried')
  expect(home.status(uuid)).toEqual(before)
  expect(runsOf(home, 'job')).toBe(1)
  await home.broker.ask(`kick-job ${ticket}\r\n`)
  await until('another run', () => runsOf(home, 'job') === 2)
  await second.waitFor('its attempt', (line) => line.event === 'job_dequeued' && line.attempt === 1)
  await until('the burial', async () => (await home.ticketState(ticket)) === 'buried')
  expect(home.status(uuid)?.attempts).toMatchObject([{ attempt: 1, outcome: 'failed' }])
  expect(runsOf(home, 'job')).toBe(2)
}, 180_000)

test('a job that failed and was not buried has a status that tells so, though its documents are gone', async () => {
  const { home, first, uuid, ticket } = await failUnburied()
  await kill(first)
  rmSync(join(home.results, uuid.slice(0, 2), uuid), { recursive: true })
  await home.startWorker()
  await until('the burial', async () => (await home.ticketState(ticket)) === 'buried')
  const status = home.status(uuid)
  expect(status).toMatchObject({ state: 'failed', attempts: [{ attempt: 1, outcome: 'failed', exit_code: 9 }] })
  expect(status?.reason).toContain('exit 9')
  expect(runsOf(home, 'job')).toBe(1)
}, 180_000)

test('a worker is killed between the publication of a failure and its note in the tracker: what was published stands, and the job is buried and not run', async () => {
  const home = await install({ CONCURRENCY: '1', MAX_ATTEMPTS: '5' })
  home.addAlgorithm('job', `${WAITS}; exit 65`)
  const first = await home.startWorker()
  const uuid = newUuid()
  const ticket = await home.put(`[{"uuid":"${uuid}","type":"job"},{}]`, { ttr: 60 })
  await first.waitFor('the run', ({ event }) => event === 'run_started')
  const release = await holdTracker(home.results)
  letGo(home, 'job')
  await until('the failure', () => home.status(uuid)?.state === 'failed')
  const before = home.status(uuid)
  await kill(first)
  await release()
  await home.startWorker()
  await until('the burial', async () => (await home.ticketState(ticket)) === 'buried')
  expect(home.status(uuid)).toEqual(before)
  expect(before?.attempts).toMatchObject([{ attempt: 1, outcome: 'rejected' }])
  expect(runsOf(home, 'job')).toBe(1)
  await home.broker.ask(`kick-job ${ticket}\r\n`)
  await until('another run', () => runsOf(home, 'job') === 2)
  await until('the burial', async () => (await home.ticketState(ticket)) === 'buried')
  expect(existsSync(join(home.algorithms, 'job', 'go'))).toBe(true)
  expect(home.status(uuid)?.attempts).toMatchObject([{ attempt: 1, outcome: 'rejected' }])
}, 180_000)
