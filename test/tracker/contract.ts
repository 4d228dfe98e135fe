/** What every tracker driver must do, whatever it keeps its memory in. */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import {
  type AttemptEnd,
  type AttemptStart,
  type OutboxEntry,
  openTracker,
  type Tracker,
  TrackerError,
} from '../../src/tracker/tracker.ts'

export const UUID = 'bc3a92508d764f9da1e4d3e5a9b6c7f0'
export const OTHER = '00000000000000000000000000000001'
const STARTED = '2026-02-03T04:05:06.789Z'

export function attempt(change: Partial<AttemptStart> = {}): AttemptStart {
  return {
    uuid: UUID,
    type: 'forecast',
    ticket: '17',
    tube: 'default',
    attempt: 1,
    maxAttempts: 5,
    worker: 'w1',
    run: 'run-1',
    started: STARTED,
    deadline: '2026-02-03T05:05:06.789Z',
    ...change,
  }
}

export function ending(change: Partial<AttemptEnd> = {}): AttemptEnd {
  return {
    ended: '2026-02-03T04:06:00.000Z',
    counts: true,
    record: '{"a":"ü\\u0000"}',
    state: 'open',
    outbox: false,
    ...change,
  }
}

export async function failureOf(work: Promise<unknown>): Promise<TrackerError> {
  const error = await work.then(
    (value) => `no error, but ${JSON.stringify(value)}`,
    (cause: unknown) => cause,
  )
  expect(error).toBeInstanceOf(TrackerError)
  return error as TrackerError
}

export async function open(url: string): Promise<Tracker> {
  const tracker = await openTracker(url)
  onTestFinished(() => tracker.close())
  return tracker
}

/** Starts a program beside this file; its first line says that it is ready, or how it went. */
export function startProgram(name: string, url: string, worker: string, ...uuids: string[]) {
  const args = [join(import.meta.dirname, name), url, worker, STARTED, ...uuids]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>
  onTestFinished(async () => {
    child.kill('SIGKILL')
    await exited
  })
  return { child, exited, told: firstLine(child) }
}

export async function firstLine(child: ChildProcess): Promise<string> {
  for await (const line of createInterface({ input: child.stdout! })) return line
  throw new Error('the child ended without a word')
}

/** @param place the URL of a tracker that is not there yet; removed when the test finished */
export function describeTracker(name: string, place: () => string): void {
  describe(`tracker: ${name}`, () => {
    describe('attempts', () => testAttempts(place))
    describe('outbox', () => testOutbox(place))
    describe('several processes', () => testProcesses(place))
  })
}

function testAttempts(place: () => string): void {
  test('a job is unknown until its first attempt begins, and then shows it open with all that was said', async () => {
    const tracker = await open(place())
    expect(await tracker.read(UUID)).toBeUndefined()
    expect(await tracker.begin(attempt(), 0)).toBe(1)
    const opened = { ...attempt(), fence: 1, ended: undefined, counts: true, record: undefined }
    expect(await tracker.read(UUID)).toEqual({
      uuid: UUID,
      type: 'forecast',
      state: 'open',
      fence: 1,
      attempts: [opened],
    })
    expect(await tracker.holds(UUID, 1)).toBe(true)
    expect(await tracker.openAttempts()).toEqual([opened])
  })

  test('an attempt that ended shows how, and is not open any more', async () => {
    const tracker = await open(place())
    await tracker.begin(attempt(), 0)
    expect(await tracker.end(UUID, 1, ending({ counts: false }))).toBe(true)
    const { ended, record } = ending()
    expect((await tracker.read(UUID))?.attempts).toEqual([{ ...attempt(), fence: 1, ended, record, counts: false }])
    expect(await tracker.holds(UUID, 1)).toBe(false)
    expect(await tracker.openAttempts()).toEqual([])
  })

  test('what was written is there after the tracker was closed and opened', async () => {
    const url = place()
    const first = await openTracker(url)
    await first.begin(attempt(), 0)
    await first.end(UUID, 1, ending({ outbox: true }))
    const before = await first.read(UUID)
    await first.close()
    const second = await open(url)
    expect(await second.read(UUID)).toEqual(before)
    expect(await second.outbox.has(UUID)).toBe(true)
  })

  test('a second attempt begins only after the first ended, and its fence is greater', async () => {
    const tracker = await open(place())
    await tracker.begin(attempt(), 0)
    expect(await tracker.begin(attempt(), 1)).toBeUndefined()
    await tracker.end(UUID, 1, ending())
    expect(await tracker.begin(attempt({ attempt: 2, run: 'run-2', type: 'other' }), 1)).toBe(2)
    const job = await tracker.read(UUID)
    expect(job).toMatchObject({ fence: 2, type: 'other' })
    expect(job?.attempts.map(({ fence, attempt, run, type }) => [fence, attempt, run, type])).toEqual([
      [1, 1, 'run-1', 'forecast'],
      [2, 2, 'run-2', 'other'],
    ])
  })

  test('of two that read a job and begin, one is refused, and nothing of it is written', async () => {
    const url = place()
    const [a, b] = [await open(url), await open(url)]
    const fences = await Promise.all([a.begin(attempt({ worker: 'a' }), 0), b.begin(attempt({ worker: 'b' }), 0)])
    expect(fences.filter((fence) => fence === 1)).toHaveLength(1)
    expect(fences.filter((fence) => fence === undefined)).toHaveLength(1)
    expect((await a.read(UUID))?.attempts).toHaveLength(1)
  })

  test('who read a job before another attempt began and ended is refused', async () => {
    const url = place()
    const [a, b] = [await open(url), await open(url)]
    const seen = (await a.read(UUID))?.fence ?? 0
    await b.begin(attempt(), 0)
    await b.end(UUID, 1, ending())
    expect(await a.begin(attempt(), seen)).toBeUndefined()
    expect(await a.begin(attempt(), 2)).toBeUndefined()
    expect(await a.begin(attempt(), 1)).toBe(2)
  })

  test('an attempt ends once: the second end, a foreign fence and an unknown job write nothing', async () => {
    const url = place()
    const [a, b] = [await open(url), await open(url)]
    await a.begin(attempt(), 0)
    expect(await b.end(UUID, 2, ending({ state: 'failed', outbox: true }))).toBe(false)
    expect(await b.end(UUID, 0, ending({ state: 'failed', outbox: true }))).toBe(false)
    expect(await b.end(OTHER, 1, ending({ state: 'failed', outbox: true }))).toBe(false)
    expect(await b.end(UUID, 1, ending({ record: '"by b"' }))).toBe(true)
    const after = await a.read(UUID)
    expect(await a.end(UUID, 1, ending({ state: 'failed', outbox: true }))).toBe(false)
    expect(await a.read(UUID)).toEqual(after)
    expect(after).toMatchObject({ state: 'open', attempts: [{ record: '"by b"' }] })
    expect(await a.outbox.state()).toMatchObject({ length: 0 })
  })

  test('an attempt that a newer one followed holds nothing and ends nothing', async () => {
    const tracker = await open(place())
    await tracker.begin(attempt(), 0)
    await tracker.end(UUID, 1, ending())
    await tracker.begin(attempt(), 1)
    expect(await tracker.holds(UUID, 1)).toBe(false)
    expect(await tracker.end(UUID, 1, ending())).toBe(false)
    expect(await tracker.holds(UUID, 2)).toBe(true)
  })

  test.each(['complete', 'failed'] as const)(
    'a job that is %s begins anew: earlier attempts do not show',
    async (state) => {
      const tracker = await open(place())
      await tracker.begin(attempt(), 0)
      await tracker.end(UUID, 1, ending())
      await tracker.begin(attempt({ attempt: 2 }), 1)
      await tracker.end(UUID, 2, ending({ state }))
      expect(await tracker.read(UUID)).toMatchObject({ state, fence: 2 })
      expect((await tracker.read(UUID))?.attempts).toHaveLength(2)
      expect(await tracker.begin(attempt({ run: 'again' }), 2)).toBe(3)
      const job = await tracker.read(UUID)
      expect(job?.state).toBe('open')
      expect(job?.attempts.map(({ run }) => run)).toEqual(['again'])
    },
  )

  test('open attempts are told of one worker or of all, the oldest first', async () => {
    const tracker = await open(place())
    const uuids = [5, 3, 4].map((digit) => OTHER.replace(/.$/, String(digit)))
    for (const [i, uuid] of uuids.entries()) await tracker.begin(attempt({ uuid, worker: i === 1 ? 'b' : 'a' }), 0)
    const of = async (worker?: string) => (await tracker.openAttempts(worker)).map(({ uuid }) => uuid)
    expect(await of()).toEqual(uuids)
    expect(await of('a')).toEqual([uuids[0], uuids[2]])
    expect(await of('b')).toEqual([uuids[1]])
    expect(await of('c')).toEqual([])
  })

  test('a mark makes a job known or changes its state, and leaves attempts as they are', async () => {
    const tracker = await open(place())
    await tracker.mark(OTHER, 'forecast', 'complete', true)
    expect(await tracker.read(OTHER)).toEqual({
      uuid: OTHER,
      type: 'forecast',
      state: 'complete',
      fence: 0,
      attempts: [],
    })
    expect(await tracker.outbox.has(OTHER)).toBe(true)
    await tracker.begin(attempt(), 0)
    await tracker.mark(UUID, 'forecast', 'failed', false)
    expect(await tracker.read(UUID)).toMatchObject({
      state: 'failed',
      fence: 1,
      attempts: [{ fence: 1, ended: undefined }],
    })
    expect(await tracker.holds(UUID, 1)).toBe(true)
    expect(await tracker.outbox.has(UUID)).toBe(false)
    await tracker.mark(OTHER, 'forecast', 'open', false)
    expect(await tracker.begin(attempt({ uuid: OTHER }), 0)).toBe(1)
  })

  test('a job keeps its newest 100 attempts', async () => {
    const tracker = await open(place())
    for (let fence = 1; fence <= 103; fence++) {
      expect(await tracker.begin(attempt({ attempt: fence }), fence - 1)).toBe(fence)
      await tracker.end(UUID, fence, ending({ counts: fence % 2 === 0 }))
    }
    const attempts = (await tracker.read(UUID))?.attempts ?? []
    expect(attempts.map(({ fence }) => fence)).toEqual(Array.from({ length: 100 }, (_, i) => i + 4))
    expect(attempts.filter(({ counts }) => counts)).toHaveLength(50)
  })

  test('a closed tracker refuses what is asked of it, and may be closed again', async () => {
    const tracker = await openTracker(place())
    await tracker.close()
    await tracker.close()
    expect((await failureOf(tracker.read(UUID))).message).toContain('is closed')
    expect((await failureOf(tracker.begin(attempt(), 0))).code).toBe('failed')
  })
}

/** Takes as soon as something can be taken. */
async function takeSoon(tracker: Tracker, owner: string, leaseSeconds = 60): Promise<OutboxEntry> {
  for (;;) {
    const entry = await tracker.outbox.take(owner, leaseSeconds)
    if (entry !== undefined) return entry
    await sleep(5)
  }
}

function testOutbox(place: () => string): void {
  const uuids = [7, 2, 5].map((digit) => OTHER.replace(/.$/, String(digit)))

  test('entries are taken in the order in which they were put, each by one owner', async () => {
    const url = place()
    const [a, b] = [await open(url), await open(url)]
    for (const uuid of uuids) await a.outbox.put(uuid)
    const taken = [await a.outbox.take('a', 60), await b.outbox.take('b', 60), await a.outbox.take('a', 60)]
    expect(taken.map((entry) => entry?.uuid)).toEqual(uuids)
    expect(await b.outbox.take('b', 60)).toBeUndefined()
  })

  test('an end puts its job into the outbox; done takes it out', async () => {
    const tracker = await open(place())
    await tracker.begin(attempt(), 0)
    await tracker.end(UUID, 1, ending({ state: 'complete', outbox: true }))
    expect(await tracker.outbox.has(UUID)).toBe(true)
    const entry = await takeSoon(tracker, 'a')
    expect(entry).toMatchObject({ uuid: UUID, tries: 0, error: undefined })
    expect(Math.abs(Date.parse(entry.since) - Date.now())).toBeLessThan(60_000)
    expect(await tracker.outbox.has(UUID)).toBe(true)
    await tracker.outbox.settle(entry, 'a', { done: true })
    expect(await tracker.outbox.has(UUID)).toBe(false)
    expect(await tracker.outbox.state()).toEqual({ length: 0, oldest: undefined, dueInSeconds: undefined, owners: [] })
  })

  test('what failed is due again later with one more try and the reason, and keeps its place', async () => {
    const tracker = await open(place())
    for (const uuid of uuids) await tracker.outbox.put(uuid)
    const first = await takeSoon(tracker, 'a')
    await tracker.outbox.settle(first, 'a', { retryInSeconds: 0.3, error: 'no network' })
    expect((await tracker.outbox.take('a', 0.001))?.uuid).toBe(uuids[1])
    let again: OutboxEntry
    do again = await takeSoon(tracker, 'a', 0.001)
    while (again.uuid !== uuids[0])
    expect(again).toEqual({ ...first, tries: 1, error: 'no network' })
  })

  test('the state tells length, age, when the next is due, and who has taken some', async () => {
    const tracker = await open(place())
    await tracker.outbox.put(UUID)
    await tracker.outbox.put(OTHER)
    const first = await takeSoon(tracker, 'a')
    const rest = { length: 2, oldest: first.since }
    expect(await tracker.outbox.state()).toEqual({ ...rest, dueInSeconds: 0, owners: ['a'] })
    const second = await takeSoon(tracker, 'b')
    expect(await tracker.outbox.state()).toEqual({ ...rest, dueInSeconds: undefined, owners: ['a', 'b'] })
    await tracker.outbox.settle(second, 'b', { retryInSeconds: 100, error: '' })
    const { dueInSeconds, owners } = await tracker.outbox.state()
    expect(owners).toEqual(['a'])
    expect(dueInSeconds).toBeGreaterThan(50)
    expect(dueInSeconds).toBeLessThanOrEqual(100)
  })

  test('a job put again keeps its place, and a take under way does not settle the newer put', async () => {
    const tracker = await open(place())
    for (const uuid of uuids) await tracker.outbox.put(uuid)
    const entry = await takeSoon(tracker, 'a')
    await tracker.outbox.put(entry.uuid)
    expect((await tracker.outbox.state()).length).toBe(3)
    expect((await tracker.outbox.take('b', 60))?.uuid).toBe(uuids[1])
    await tracker.outbox.settle(entry, 'a', { done: true })
    const newer = await takeSoon(tracker, 'b')
    expect(newer).toMatchObject({ uuid: entry.uuid, since: entry.since, tries: 0 })
    expect(newer.version).toBeGreaterThan(entry.version)
    await tracker.outbox.settle(newer, 'b', { done: true })
    expect(await tracker.outbox.has(entry.uuid)).toBe(false)
  })

  test('a lease lapses; whose lease was taken over settles nothing', async () => {
    const tracker = await open(place())
    await tracker.outbox.put(UUID)
    const slow = await takeSoon(tracker, 'slow', 0.05)
    const quick = await takeSoon(tracker, 'quick')
    expect(quick).toEqual(slow)
    await tracker.outbox.settle(slow, 'slow', { done: true })
    await tracker.outbox.settle(slow, 'slow', { retryInSeconds: 0, error: 'late' })
    expect(await tracker.outbox.take('slow', 60)).toBeUndefined()
    await tracker.outbox.settle(quick, 'quick', { done: true })
    expect(await tracker.outbox.has(UUID)).toBe(false)
  })

  test('a late settlement does not touch what the same owner took after it was put anew', async () => {
    const tracker = await open(place())
    await tracker.outbox.put(UUID)
    const old = await takeSoon(tracker, 'a')
    await tracker.outbox.settle(old, 'a', { done: true })
    await tracker.outbox.put(UUID)
    const fresh = await takeSoon(tracker, 'a')
    await tracker.outbox.settle(old, 'a', { done: true })
    await tracker.outbox.settle(old, 'a', { retryInSeconds: 0, error: 'late' })
    expect(await tracker.outbox.state()).toMatchObject({ length: 1, dueInSeconds: undefined })
    expect(fresh.version).toBeGreaterThan(old.version)
  })

  test('what an owner gives back is due at once, and what others took is not', async () => {
    const tracker = await open(place())
    for (const uuid of uuids) await tracker.outbox.put(uuid)
    for (const owner of ['dead', 'alive', 'dead']) await takeSoon(tracker, owner)
    await tracker.outbox.giveBack('dead')
    expect((await tracker.outbox.take('alive', 60))?.uuid).toBe(uuids[0])
    expect((await tracker.outbox.take('alive', 60))?.uuid).toBe(uuids[2])
    expect(await tracker.outbox.take('alive', 60)).toBeUndefined()
  })
}

/** What race.js says. */
interface Told {
  readonly begun: readonly string[]
  readonly refused: number
  readonly double: number
  readonly lost: number
}

function testProcesses(place: () => string): void {
  test('an attempt whose process was killed stays open and can be read and ended by another', async () => {
    const url = place()
    const { child, exited, told } = startProgram('begin.js', url, 'gone', UUID)
    expect(await told).toBe('1')
    child.kill('SIGKILL')
    expect(await exited).toEqual([null, 'SIGKILL'])
    const tracker = await open(url)
    expect(await tracker.openAttempts('gone')).toMatchObject([{ uuid: UUID, fence: 1, ended: undefined }])
    expect(await tracker.begin(attempt(), 1)).toBeUndefined()
    expect(await tracker.end(UUID, 1, ending({ counts: false }))).toBe(true)
    expect(await tracker.begin(attempt(), 1)).toBe(2)
  })

  test('two processes that begin and end 500 attempts each of shared jobs never have two open at once', async () => {
    const url = place()
    const uuids = [1, 2, 3].map((digit) => OTHER.replace(/.$/, String(digit)))
    const both = ['a', 'b'].map((worker) => startProgram('race.js', url, worker, ...uuids).told)
    const told = (await Promise.all(both)).map((line) => JSON.parse(line) as Told)
    expect(told.map(({ double, lost }) => [double, lost])).toEqual([
      [0, 0],
      [0, 0],
    ])
    // They were in each other's way: else nothing is proven.
    expect(told.reduce((sum, { refused }) => sum + refused, 0)).toBeGreaterThan(0)
    expect(new Set(told.flatMap(({ begun }) => begun)).size).toBe(1000)
    const tracker = await open(url)
    const jobs = await Promise.all(uuids.map((uuid) => tracker.read(uuid)))
    expect(jobs.reduce((sum, job) => sum + (job?.fence ?? 0), 0)).toBe(1000)
    expect(await tracker.openAttempts()).toEqual([])
  })

  test('nothing that was said to be written is lost when a process with many writes under way is killed', async () => {
    const url = place()
    const { child, exited } = startProgram('crowd.js', url, 'gone')
    let said = ''
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      said += text
      if (said.length > 20_000) child.kill('SIGKILL')
    })
    await exited
    const tracker = await open(url)
    const lines = said.split('\n').slice(0, -1)
    expect(lines.length).toBeGreaterThan(400)
    const ended = new Set(lines.filter((line) => line.startsWith('ended')).map((line) => line.split(' ')[1]))
    for (const line of lines) {
      const [, uuid = '', fence] = line.split(' ')
      expect(fence).toBe('1')
      const job = await tracker.read(uuid)
      expect(job?.fence).toBe(1)
      if (ended.has(uuid)) expect(job?.state).toBe('complete')
    }
  })

  test('several processes open one new tracker at the same time', async () => {
    const url = place()
    const digits = [1, 2, 3, 4, 5, 6]
    const children = digits.map((digit) => startProgram('begin.js', url, 'w', OTHER.replace(/.$/, String(digit))))
    for (const { told } of children) expect(await told).toBe('1')
    expect(await (await open(url)).openAttempts()).toHaveLength(digits.length)
  })
}
