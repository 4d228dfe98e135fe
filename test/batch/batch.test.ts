import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { type AcceptedJob, submitBatch } from '../../src/batch/batch.ts'
import { type LineBlock, splitLines } from '../../src/batch/lines.ts'
import { type Queue, QueueError } from '../../src/queue/queue.ts'
import { makeServers, rankServers } from '../../src/queue/servers.ts'
import { makeSpread } from '../../src/queue/spread.ts'
import { startBroker, type TestBroker } from '../support/broker.ts'
import { newPut, openForTest, takeAll } from '../support/packages.ts'

let broker: TestBroker

beforeAll(async () => {
  broker = await startBroker()
})
afterAll(() => broker.stop())

/** Lines as they come from a file. */
function from(lines: readonly string[]): AsyncIterable<LineBlock> {
  async function* chunks() {
    const text = Buffer.from(lines.map((line) => `${line}\n`).join(''))
    for (let at = 0; at < text.length; at += 2 ** 16) yield text.subarray(at, at + 2 ** 16)
  }
  return splitLines(chunks())
}

/** A line by itself, as from a terminal. */
const one = (line: string): LineBlock => ({ lines: [line], ends: [0] })

/** A queue that answers as the test wants, to reach what a healthy broker never says. */
function fakeQueue(put: (index: number) => Promise<string>): Queue {
  let index = 0
  const answer = (_: string) => put(index++).catch((error: QueueError) => error)
  return {
    maxBodyBytes: 65_535,
    putMany: (bodies: readonly string[]) => Promise.all(bodies.map(answer)),
  } as unknown as Queue
}

describe('a batch', () => {
  it('of 20,000 lines is put with many under way, in order, and accounted for', async () => {
    const [queue, put] = [await openForTest(broker.url), newPut()]
    const jobs: AcceptedJob[] = []
    const lines = Array.from({ length: 20_000 }, (_, i) => `{"n":${i}}`)
    const account = await submitBatch(queue, from(lines), {
      put,
      defaults: { type: 'sleep' },
      onAccepted: (some) => jobs.push(...some),
    })
    expect(account).toEqual({
      accepted: 20_000,
      firstLine: 1,
      lastLine: 20_000,
      failed: undefined,
      unanswered: undefined,
      refusedLines: [],
      nextLine: 20_001,
      reached: { line: 20_000, offset: lines.join('\n').length + 1 },
    })
    expect(jobs.map((job) => job.line)).toEqual(lines.map((_, i) => i + 1))
    expect(new Set(jobs.map((job) => job.uuid)).size).toBe(20_000)
    expect(await broker.ask(`stats-tube ${put.tube}\r\n`, /\n\r\n$/)).toContain('current-jobs-ready: 20000\n')
  })

  it('skips empty lines and counts them', async () => {
    const [queue, put] = [await openForTest(broker.url), newPut()]
    const account = await submitBatch(queue, from(['', 'a', '  ', 'b', '']), { put, defaults: { type: 'sleep' } })
    expect(account).toMatchObject({ accepted: 2, firstLine: 2, lastLine: 4, failed: undefined, nextLine: 6 })
  })

  it('stops at a bad line, with all lines before it accepted and none after it', async () => {
    const [queue, put] = [await openForTest(broker.url), newPut()]
    const lines = Array.from({ length: 1000 }, (_, i) => (i === 600 ? '{"bad"' : `{"n":${i}}`))
    const account = await submitBatch(queue, from(lines), { put, defaults: { type: 'sleep' } })
    expect(account).toMatchObject({ accepted: 600, firstLine: 1, lastLine: 600, nextLine: 601, unanswered: undefined })
    expect(account.failed).toMatchObject({ line: 601, kind: 'line' })
    const payloads = (await takeAll(put.tube, broker.url)).map((taken) => taken.payloadJson)
    expect(payloads).toEqual(lines.slice(0, 600))
  })

  it('stops at a line over the limit of the broker and never sends it', async () => {
    const [queue, put] = [await openForTest(broker.url), newPut()]
    const before = await broker.stat('cmd-put')
    const account = await submitBatch(queue, from(['a', 'x'.repeat(70_000), 'b']), { put, defaults: { type: 'sleep' } })
    expect(account).toMatchObject({ accepted: 1, nextLine: 2, failed: { line: 2, kind: 'line' } })
    expect(account.failed?.message).toMatch(/7\d{4} bytes and the broker takes at most 65535/)
    expect(await broker.stat('cmd-put')).toBe(before + 1)
  })

  it('tells a fault of its source apart from a bad line', async () => {
    const [queue, put] = [await openForTest(broker.url), newPut()]
    async function* lines() {
      yield one('a')
      throw Object.assign(new Error('EIO: i/o error'), { code: 'EIO' })
    }
    const account = await submitBatch(queue, lines(), { put, defaults: { type: 'sleep' } })
    expect(account).toMatchObject({ accepted: 1, failed: { line: 2, kind: 'input', message: 'EIO: i/o error' } })
  })

  it('is interrupted while its source waits, and says where to go on', async () => {
    const [queue, put] = [await openForTest(broker.url), newPut()]
    const interrupt = new AbortController()
    async function* lines() {
      yield one('a')
      yield one('b')
      interrupt.abort()
      await new Promise(() => undefined)
    }
    const account = await submitBatch(queue, lines(), { put, defaults: { type: 'sleep' }, signal: interrupt.signal })
    expect(account).toMatchObject({ accepted: 2, nextLine: 3, failed: { line: 3, kind: 'interrupted' } })
  })

  it('whose broker is killed in the middle names what was accepted and what is not known, and the broker agrees', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'binlog-'))
    onTestFinished(() => rm(dir, { recursive: true }))
    const doomed = await startBroker({ dir })
    onTestFinished(() => doomed.stop())
    const [queue, put] = [await openForTest(doomed.url), newPut()]
    async function* lines() {
      for (let i = 1; i <= 5000; i++) {
        if (i === 2000) process.kill(doomed.pid, 'SIGKILL')
        yield one(`{"line":${i}}`)
      }
    }
    const accepted: number[] = []
    const account = await submitBatch(queue, lines(), {
      put,
      defaults: { type: 'sleep' },
      onAccepted: (jobs) => accepted.push(...jobs.map(({ line }) => line)),
    })
    const { unanswered, failed } = account
    expect(failed).toMatchObject({ kind: 'broker', message: expect.stringContaining('was lost') })
    expect(accepted).toEqual(Array.from({ length: account.accepted }, (_, i) => i + 1))
    expect(unanswered?.fromLine).toBe(account.accepted + 1)
    expect(failed?.line).toBe(unanswered?.fromLine)
    expect(account.nextLine).toBe((unanswered?.toLine ?? 0) + 1)
    expect((unanswered?.toLine ?? 0) - account.accepted).toBeLessThanOrEqual(1024)

    const revived = await startBroker({ dir })
    onTestFinished(() => revived.stop())
    const truth = (await takeAll(put.tube, revived.url)).map(
      ({ payloadJson }) => JSON.parse(payloadJson).line as number,
    )
    expect(truth).toEqual(expect.arrayContaining(accepted))
    expect(Math.max(...truth)).toBeLessThanOrEqual(unanswered?.toLine ?? 0)
  })

  it('that the broker refuses in the middle names the refused lines below the accepted ones', async () => {
    const queue = fakeQueue(async (index) => {
      await new Promise(setImmediate)
      if (index === 2 || index === 4) throw new QueueError('refused', 'out of memory')
      return String(index)
    })
    const account = await submitBatch(queue, from(['1', '2', '3', '4', '5', '6', '7']), {
      put: newPut(),
      defaults: { type: 'sleep' },
    })
    expect(account).toEqual({
      accepted: 5,
      firstLine: 1,
      lastLine: 7,
      failed: { line: 3, kind: 'broker', message: 'out of memory' },
      unanswered: undefined,
      refusedLines: [3, 5],
      nextLine: 8,
      reached: { line: 2, offset: 4 },
    })
  })

  it('never has more than 1024 puts under way', async () => {
    let underWay = 0
    let most = 0
    const queue = fakeQueue(async (index) => {
      most = Math.max(most, ++underWay)
      await new Promise(setImmediate)
      underWay--
      return String(index)
    })
    const lines = Array.from({ length: 3000 }, () => 'x')
    expect(await submitBatch(queue, from(lines), { put: newPut(), defaults: { type: 'sleep' } })).toMatchObject({
      accepted: 3000,
    })
    expect(most).toBe(1024)
  })

  it('whose servers are all killed names each line: what one took, and what is not known of the other', async () => {
    const [a, b] = await Promise.all([startBroker(), startBroker()])
    for (const each of [a, b]) onTestFinished(() => each.stop())
    const servers = makeServers([`127.0.0.1:${a.port}`, `127.0.0.1:${b.port}`], 1)
    const uuidFor = (port: number) => {
      for (;;) {
        const uuid = randomBytes(16).toString('hex')
        if (rankServers(uuid, servers)[0]?.port === port) return uuid
      }
    }
    const queue = makeSpread({ servers, tell: () => undefined })
    await queue.open()
    await a.kill('SIGSTOP')
    const uuids = [b, a, b, a, b].map(({ port }) => uuidFor(port))
    const lines = uuids.map((uuid) => `[{"uuid":"${uuid}","type":"sleep"},{}]`)
    const accepted: string[] = []
    const batch = submitBatch(queue, from(lines), {
      put: newPut(),
      defaults: {},
      onAccepted: (jobs) => accepted.push(...jobs.map(({ uuid }) => uuid)),
    })
    await expect.poll(() => b.stat('current-jobs-ready')).toBe(3)
    await b.kill()
    await a.kill()
    expect(await batch).toMatchObject({
      accepted: 3,
      firstLine: 1,
      lastLine: 5,
      failed: { line: 2, kind: 'broker' },
      unanswered: { fromLine: 2, toLine: 4, accepted: [3] },
      refusedLines: [],
      nextLine: 6,
    })
    expect(accepted).toEqual([0, 2, 4].map((i) => uuids[i]))
    queue.close()
  })
})
