/** That the torture sees what it is to find: each fault is planted, with real files and real processes. */

import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, renameSync, rmSync, unlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { openQueue } from '../../src/queue/queue.ts'
import { countRuns, enterJournal, leaveJournal, readOverlaps } from '../../src/sailor/journal.ts'
import { readProcess } from '../../src/sailor/process.ts'
import { makeStandIn, startBucket } from '../../src/sailor/torture/bucket.ts'
import { makeLogbook } from '../../src/sailor/torture/logbook.ts'
import { startLookout } from '../../src/sailor/torture/lookout.ts'
import { endAllMarked, findMarked } from '../../src/sailor/torture/marked.ts'
import type { S3FaultKind } from '../../src/sailor/torture/plan.ts'
import { startProxy } from '../../src/sailor/torture/proxy.ts'
import { findLeaks, readDisk, watchResults } from '../../src/sailor/torture/results.ts'
import { openWire, stateOfTicket } from '../../src/sailor/torture/wire.ts'
import { openS3Store } from '../../src/store/store.ts'
import { startBroker } from '../support/broker.ts'
import { until } from '../support/installation.ts'

const UUID = 'a'.repeat(32)

function makeBase(): string {
  const base = mkdtempSync(join(tmpdir(), 'qworker-eyes-'))
  onTestFinished(() => rmSync(base, { recursive: true, force: true }))
  return base
}

function publish(base: string, { report = 'rum', listed = 'rum', state = 'complete' } = {}): string {
  const dir = join(base, UUID.slice(0, 2), UUID)
  mkdirSync(dir, { recursive: true })
  const sha256 = createHash('sha256').update(listed).digest('hex')
  const files = [{ name: 'report.txt', bytes: listed.length, sha256 }]
  writeFileSync(join(dir, 'report.txt'), report)
  writeFileSync(join(dir, 'status.json'), JSON.stringify({ format: 1, uuid: UUID, type: 't', state, attempts: [] }))
  writeFileSync(join(dir, 'result.json'), JSON.stringify({ uuid: UUID, timestamp: '2026-01-01T00:00:00Z', files }))
  return dir
}

/** A process as a run of worker w1.1 has it. */
async function startRun(base: string, mark: string, env: Record<string, string> = {}): Promise<ChildProcess> {
  const run = { QWORKER_RUN: mark, QWORKER_UUID: UUID, QWORKER_ATTEMPT: '1', QWORKER_TTR: '1' }
  const child = spawn('sleep', ['60'], {
    env: { PATH: process.env.PATH ?? '', SAILOR_TORTURE: `${base}/w1.1`, ...run, ...env },
    stdio: 'ignore',
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  await once(child, 'spawn')
  return child
}

test('a result is whole only with every file that it lists, to the last byte', () => {
  const base = makeBase()
  expect(readDisk(base, UUID).disk).toMatchObject({ result: 'none', state: undefined })
  const dir = publish(base)
  expect(readDisk(base, UUID)).toMatchObject({ disk: { result: 'whole', state: 'complete' } })
  expect([...readDisk(base, UUID).files.keys()]).toEqual(['result.json', 'report.txt'])
  publish(base, { report: 'gin', listed: 'rum' })
  expect(readDisk(base, UUID).disk).toMatchObject({ result: 'damaged', damage: expect.stringContaining('sha256') })
  unlinkSync(join(dir, 'report.txt'))
  expect(readDisk(base, UUID).disk).toMatchObject({ result: 'damaged', damage: expect.stringContaining('ENOENT') })
  writeFileSync(join(dir, 'result.json'), '{"uuid": "')
  expect(readDisk(base, UUID).disk).toMatchObject({ result: 'damaged', damage: expect.stringContaining('no JSON') })
})

test('a result that is replaced or goes away after it was seen is noticed, one that stays is not', () => {
  const base = makeBase()
  const watch = watchResults(base)
  const dir = publish(base)
  for (let i = 0; i < 3; i++) watch.look([UUID], 'all')
  expect(watch.replaced).toEqual([])
  expect(watch.seenCount()).toBe(1)
  writeFileSync(join(dir, 'new'), 'another')
  renameSync(join(dir, 'new'), join(dir, 'result.json'))
  watch.look([UUID], 'all')
  expect(watch.replaced).toEqual([{ id: UUID, detail: expect.stringContaining('replaced by another') }])
  unlinkSync(join(dir, 'result.json'))
  watch.look([UUID], 'all')
  expect(watch.replaced[0]?.detail).toContain('gone')
})

test('scratch directories, temporary files and locks are leaks', () => {
  const base = makeBase()
  const dir = publish(base)
  mkdirSync(join(base, '.work'))
  expect(findLeaks(base)).toEqual([])
  mkdirSync(join(base, '.work', 'run', 'scratch'), { recursive: true })
  writeFileSync(join(dir, '.0123456789abcdef.tmp'), '')
  writeFileSync(join(dir, '.publishing'), '')
  expect(findLeaks(base).map(({ id }) => id)).toEqual(['.work/run', UUID, UUID])
})

test('the journal tells of two runs of one job at once, and not of one after the other', async () => {
  const base = makeBase()
  const other = await startRun(base, 'first')
  const { startTicks } = readProcess(other.pid ?? 0)!
  mkdirSync(join(base, UUID.slice(0, 2)))
  writeFileSync(join(base, UUID.slice(0, 2), `${UUID}.1.${other.pid}.${startTicks}`), '')
  writeFileSync(join(base, UUID.slice(0, 2), `${UUID}.1.${other.pid}.${startTicks - 1}`), '')
  enterJournal(base, UUID, '2')
  expect(readOverlaps(base)).toEqual([{ uuid: UUID, detail: expect.stringContaining('attempt 1') }])
  expect(countRuns(base)).toBe(3)

  const after = makeBase()
  mkdirSync(join(after, UUID.slice(0, 2)))
  writeFileSync(join(after, UUID.slice(0, 2), `${UUID}.1.${other.pid}.${startTicks}`), '')
  other.kill('SIGKILL')
  await once(other, 'exit')
  enterJournal(after, UUID, '2')
  expect(readOverlaps(after)).toEqual([])

  // A warm sailor has left the job, and lives on.
  leaveJournal(after, UUID, '2')
  enterJournal(after, UUID, '3')
  expect(readOverlaps(after)).toEqual([])
  expect(countRuns(after)).toBe(3)
})

test('the lookout tells of a run that outlives its worker, and of two runs of one job', async () => {
  const base = makeBase()
  const first = await startRun(base, 'first')
  const killedAt = readProcess(first.pid ?? 0)!.startTicks / 100
  const timesOf = () => ({ stops: [], killedAt })
  const lookout = startLookout({ base, graceSeconds: 1, timesOf })
  onTestFinished(() => lookout.stop())
  await until('it is late', () => lookout.lateKills.length > 0, 10)
  expect(lookout.lateKills).toEqual([{ id: UUID, detail: expect.stringContaining(String(first.pid)) }])
  expect(lookout.overlaps).toEqual([])
  await startRun(base, 'second', { QWORKER_ATTEMPT: '2' })
  await until('two are seen', () => lookout.overlaps.length > 0, 10)
  expect(lookout.overlaps).toEqual([{ id: UUID, detail: expect.stringContaining('attempt 2') }])
}, 30_000)

test('a run within its time, and one whose worker is stopped, is not late', async () => {
  const base = makeBase()
  const run = await startRun(base, 'first', { QWORKER_TTR: '60' })
  const stopped = await startRun(base, 'second', { SAILOR_TORTURE: `${base}/w2.1`, QWORKER_UUID: 'b'.repeat(32) })
  const from = readProcess(stopped.pid ?? 0)!.startTicks / 100
  const timesOf = (worker: string) => ({
    stops: worker === 'w2.1' ? [{ from, to: undefined }] : [],
    killedAt: undefined,
  })
  const lookout = startLookout({ base, graceSeconds: 0, timesOf })
  onTestFinished(() => lookout.stop())
  await until('the limit of the second is long over', () => lookout.latestSeconds() > 3.5, 15)
  expect(lookout.lateKills).toEqual([])
  expect(findMarked(base).map(({ pid }) => pid)).toEqual(expect.arrayContaining([run.pid, stopped.pid]))
  await endAllMarked(base)
  expect(findMarked(base)).toEqual([])
}, 30_000)

test('the logbook tells of a job that two attempts published, and reads on where it stopped', () => {
  const base = makeBase()
  const log = join(base, 'w1.1.log')
  const line = (attempt: number) => `${JSON.stringify({ event: 'job_published', uuid: UUID, attempt })}\n`
  const logbook = makeLogbook()
  writeFileSync(log, `(node:1) a warning\n${line(1)}{"event":"job_publ`)
  logbook.read([{ name: 'w1.1', log }])
  expect(logbook.publishedTwice()).toEqual([])
  writeFileSync(log, `ished","uuid":"${UUID}","attempt":2}\n`, { flag: 'a' })
  logbook.read([{ name: 'w1.1', log }])
  expect(logbook.publishedTwice()).toEqual([{ id: UUID, detail: expect.stringContaining('attempt 2 by w1.1') }])
  expect(logbook.linesOf(UUID)).toHaveLength(2)
})

test('the broker tells of a ticket by its number and its bytes: a number that was given anew is another job', async () => {
  const broker = await startBroker()
  onTestFinished(() => broker.stop())
  const queue = await openQueue(broker.url)
  const ticket = await queue.put(Buffer.from('mine'), { tube: 't', priority: 1, delaySeconds: 5, ttrSeconds: 1 })
  queue.close()
  const wire = openWire(broker.host, broker.port)
  onTestFinished(() => wire.close())
  expect(await stateOfTicket(wire, ticket, Buffer.from('mine'))).toBe('delayed')
  expect(await stateOfTicket(wire, ticket, Buffer.from('another'))).toBe('gone')
  expect(await stateOfTicket(wire, '99', Buffer.from('mine'))).toBe('gone')
})

test('the proxy passes on in order while it delays, and a half-open side learns nothing until the time is over', async () => {
  const broker = await startBroker()
  onTestFinished(() => broker.stop())
  const proxy = await startProxy(broker.host, broker.port)
  onTestFinished(() => proxy.close())
  const queue = await openQueue(`beanstalk://127.0.0.1:${proxy.port}`)
  proxy.delay(100, 300)
  const began = performance.now()
  const put = (text: string) => queue.put(Buffer.from(text), { tube: 't', priority: 1, delaySeconds: 0, ttrSeconds: 1 })
  expect(await Promise.all(['a', 'b', 'c'].map(put))).toEqual(['1', '2', '3'])
  expect(performance.now() - began).toBeGreaterThan(150)
  await queue.watch(['t'])
  expect((await queue.reserve(1))?.ticket).toBe('1')
  // The broker sees its client go, and has the job again; the client waits for an answer in vain.
  proxy.halfOpen('broker', 400)
  const lost = queue.ticketState('1').then(
    () => 'answered',
    (error) => error.code,
  )
  await until('the broker has it again', async () => (await broker.ask('stats-job 1\r\n', /\n\r\n$/)).includes('ready'))
  expect(await Promise.race([lost, Promise.resolve('waits')])).toBe('waits')
  expect(await lost).toBe('connection_lost')
})

test('S3 as the torture has it takes what our driver sends, and each of its faults reaches the driver as an error', async () => {
  const base = makeBase()
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: 'torture', AWS_SECRET_ACCESS_KEY: 'torture' })
  const standIn = makeStandIn('torture', join(base, 'bucket'))
  const bucket = await startBucket(standIn.backend, () => true)
  onTestFinished(() => bucket.close())
  const where = { bucket: 'torture', prefix: 'p/', endpoint: bucket.url, region: 'us-east-1', forcePathStyle: true }
  const store = await openS3Store(where)
  onTestFinished(() => store.close())
  expect(await store.check()).toEqual([])
  expect(await store.read(UUID, 'result.json')).toBeUndefined()
  const publication = { uuid: UUID, files: new Map(), status: '{}', result: `{"uuid": "${UUID}"}` }
  expect(await store.publish(publication)).toBe(true)
  expect(await store.read(UUID, 'result.json')).toBe(publication.result)
  expect(standIn.history(`p/${UUID}/result.json`)).toHaveLength(1)
  const kinds: S3FaultKind[] = ['s3-500', 's3-503', 's3-reset', 's3-truncate', 's3-forget']
  for (const kind of kinds) {
    bucket.disturb(kind, 60_000)
    await expect(store.read(UUID, 'result.json'), kind).rejects.toThrow(/S3 bucket torture/)
  }
  bucket.disturb('s3-slow', 60_000)
  expect(await store.read(UUID, 'result.json')).toBe(publication.result)
  bucket.disturb('s3-forget', 60_000)
  await expect(store.writeStatus(UUID, '{"stored": true}')).rejects.toThrow()
  bucket.calm()
  expect(await store.read(UUID, 'status.json')).toBe('{"stored": true}')
  // Our driver would not; who does is seen.
  await fetch(`${bucket.url}/torture/p/${UUID}/result.json`, { method: 'PUT', body: 'another' })
  expect(standIn.history(`p/${UUID}/result.json`)).toHaveLength(2)
}, 60_000)
