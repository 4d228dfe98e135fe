import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { encodePackage, PackageError, parsePackage, UUID_PATTERN } from '../../src/job/package.ts'
import {
  type AcceptedJob,
  makePackage,
  packageFromLine,
  payloadFromText,
  splitLines,
  submit,
  submitBatch,
} from '../../src/producer.ts'
import { openQueue, type PutOptions, type Queue, QueueError } from '../../src/queue/queue.ts'
import { makeServers, rankServers } from '../../src/queue/servers.ts'
import { makeSpread } from '../../src/queue/spread.ts'
import { startBroker, type TestBroker } from '../support/broker.ts'

const UUID = 'bc3a925099b9012e0f06549a20077664'
let broker: TestBroker
let tubes = 0

beforeAll(async () => {
  broker = await startBroker()
})
afterAll(() => broker.stop())

const newPut = (): PutOptions => ({ tube: `batch-${++tubes}`, priority: 1337, delaySeconds: 0, ttrSeconds: 60 })

async function openHere(url = broker.url): Promise<Queue> {
  const queue = await openQueue(url)
  onTestFinished(() => queue.close())
  return queue
}

/** Takes all that is in the tube. */
async function takeAll(tube: string, url = broker.url) {
  const queue = await openHere(url)
  await queue.watch([tube])
  const packages = []
  for (let job = await queue.reserve(0); job; job = await queue.reserve(0)) {
    packages.push(parsePackage(job.body))
    await job.delete()
  }
  return packages
}

async function* from<T>(items: Iterable<T>) {
  yield* items
}

async function linesOf(chunks: (string | Buffer)[], maxBytes?: number): Promise<string[]> {
  const lines: string[] = []
  for await (const line of splitLines(from(chunks.map((chunk) => Buffer.from(chunk))), maxBytes)) lines.push(line)
  return lines
}

/** A queue that answers as the test wants, to reach what a healthy broker never says. */
function fakeQueue(put: (index: number) => Promise<string>): Queue {
  let index = 0
  return { maxBodyBytes: 65_535, put: () => put(index++) } as unknown as Queue
}

describe('a payload', () => {
  it.each([
    ['{"n": 12345678901234567890.10}', '{"n": 12345678901234567890.10}'],
    [' \n[1, 2]\n', '[1, 2]'],
    ['plain', '{"payload":"plain"}'],
    ['  kept blanks  ', '{"payload":"  kept blanks  "}'],
    ['42', '{"payload":"42"}'],
    ['', '{"payload":""}'],
    ['"quoted"\n', '{"payload":"\\"quoted\\"\\n"}'],
  ])('from %j is %s', (text, json) => {
    expect(payloadFromText(text)).toBe(json)
  })

  it.each(['{a: 1}', '[1,', '{"a":1}}', '{not json'])(
    'that begins like JSON and is none (%s) is refused with both ways out',
    (text) => {
      expect(() => payloadFromText(text)).toThrow(PackageError)
      expect(() => payloadFromText(text)).toThrow(/correct it, or to send it as text write \{"payload": "\.\.\."\}/)
    },
  )
})

describe('a submission', () => {
  it('arrives as it was made, with a new uuid', async () => {
    const [queue, put] = [await openHere(), newPut()]
    const workPackage = makePackage({
      type: 'sleep',
      payloadJson: '{"n":1.10}',
      maxAttempts: 3,
      tags: { season: 'winter' },
    })
    expect(workPackage.header.uuid).toMatch(UUID_PATTERN)
    const { ticket, bytes } = await submit(queue, workPackage, put)
    expect(ticket).toMatch(/^\d+$/)
    expect(bytes).toBe(encodePackage(workPackage).length)
    expect(await takeAll(put.tube)).toEqual([workPackage])
  })

  it('over the limit of the broker is refused before the put, with both sizes and what to do', async () => {
    const queue = await openHere()
    const before = await broker.stat('cmd-put')
    const workPackage = makePackage({ uuid: UUID, type: 'sleep', payloadJson: `{"x":"${'x'.repeat(70_000)}"}` })
    const error = (await submit(queue, workPackage, newPut()).catch((reason: unknown) => reason)) as QueueError
    expect(error).toBeInstanceOf(QueueError)
    expect(error.code).toBe('too_big')
    expect(error.message).toBe(
      'the work package has 70069 bytes and the broker takes at most 65535: start beanstalkd with -z 70069, or put the data on a URL and send that',
    )
    expect(await broker.stat('cmd-put')).toBe(before)
  })
})

describe('lines', () => {
  it('end with LF, with CRLF, or with the file, wherever the chunks are cut', async () => {
    const text = '\ufeffone\r\ntwo\n\n\u00fc\u20ac\ud83d\ude00\r\nlast'
    const bytes = Buffer.from(text)
    const expected = ['one', 'two', '', '\u00fc\u20ac\ud83d\ude00', 'last']
    for (let cut = 0; cut <= bytes.length; cut++) {
      expect(await linesOf([bytes.subarray(0, cut), bytes.subarray(cut)])).toEqual(expected)
    }
    expect(await linesOf([...bytes].map((byte) => Buffer.from([byte])))).toEqual(expected)
    expect(await linesOf([])).toEqual([])
    expect(await linesOf(['a\n'])).toEqual(['a'])
  })

  it('that are too long are refused before they are held', async () => {
    await expect(linesOf(['ok\n', 'x'.repeat(60), 'x'.repeat(60), '\n'], 100)).rejects.toThrow('longer than 100 bytes')
    await expect(linesOf([`ok\n${'x'.repeat(101)}\n`], 100)).rejects.toThrow('longer than 100 bytes')
    expect(await linesOf(['x'.repeat(60), 'x'.repeat(40), '\n'], 100)).toHaveLength(1)
  })

  it('that are no UTF-8 are refused', async () => {
    await expect(linesOf([Buffer.from([0x61, 0xff, 0x0a])])).rejects.toMatchObject({ code: 'not_utf8' })
  })
})

describe('a line', () => {
  const parse = (line: string, defaults = {}) => {
    const { bytes, header } = packageFromLine(line, defaults)
    expect(parsePackage(bytes).header).toEqual(header)
    return { header, payloadJson: parsePackage(bytes).payloadJson }
  }

  it('that is a whole package is sent as it is', () => {
    const line = `[ {"uuid":"${UUID}","type":"sleep","mine":[1]} , {"n":1.10} ]`
    expect(String(packageFromLine(line, { type: 'other', tags: { a: 'b' }, maxAttempts: 2 }).bytes)).toBe(
      `[ {"max_attempts":2,"tags":{"a":"b"},"uuid":"${UUID}","type":"sleep","mine":[1]} , {"n":1.10} ]`,
    )
    expect(String(packageFromLine(line, {}).bytes)).toBe(line)
  })

  it('that is a package without uuid or type gets them', () => {
    expect(parse('[{"type":"sleep"},{"n":1.10}]')).toEqual({
      header: { uuid: expect.stringMatching(UUID_PATTERN), type: 'sleep' },
      payloadJson: '{"n":1.10}',
    })
    expect(parse('[{},"$& $1"]', { type: 'sleep' }).payloadJson).toBe('"$& $1"')
    expect(parse(`[{"uuid":"${UUID}"},1]`, { type: 'sleep' }).header).toEqual({ uuid: UUID, type: 'sleep' })
  })

  it('that is anything else is a payload', () => {
    for (const line of ['{"a":1}', '[1,2]', '[{"type":"sleep"}]', '[{"t":1,"v":2},{"t":2,"v":3}]', '[[],{}]']) {
      expect(parse(line, { type: 'sleep' }).payloadJson).toBe(line)
    }
    expect(parse('text', { type: 'sleep', tags: { a: 'b' }, maxAttempts: 2 })).toMatchObject({
      header: { type: 'sleep', tags: { a: 'b' }, max_attempts: 2 },
      payloadJson: '{"payload":"text"}',
    })
  })

  it.each([
    ['{"a":1}', {}, 'bad_type'],
    [`[{"uuid":"${UUID}"},1]`, {}, 'bad_type'],
    ['[{"uuid":"../x","type":"sleep"},1]', {}, 'bad_uuid'],
    ['[{"uuid":null,"type":"sleep"},1]', {}, 'bad_uuid'],
    ['[{"type":"Sleep"},1]', {}, 'bad_type'],
    ['[{"type":"sleep","max_attempts":0},1]', {}, 'bad_max_attempts'],
    ['[{"type":"sleep"},1', { type: 'sleep' }, 'not_json'],
    [`[{"type":"sleep"},${'['.repeat(200)}${']'.repeat(200)}]`, {}, 'too_deep'],
    [`${'['.repeat(200)}${']'.repeat(200)}`, { type: 'sleep' }, 'too_deep'],
  ])('%s with defaults %j is refused: %s', (line, defaults, code) => {
    expect(() => packageFromLine(line, defaults)).toThrow(expect.objectContaining({ code }))
  })
})

describe('a batch', () => {
  it('of 20,000 lines is put with many under way, in order, and accounted for', async () => {
    const [queue, put] = [await openHere(), newPut()]
    const jobs: AcceptedJob[] = []
    const lines = Array.from({ length: 20_000 }, (_, i) => `{"n":${i}}`)
    const account = await submitBatch(queue, from(lines), {
      put,
      defaults: { type: 'sleep' },
      onAccepted: (job) => jobs.push(job),
    })
    expect(account).toEqual({
      accepted: 20_000,
      firstLine: 1,
      lastLine: 20_000,
      failed: undefined,
      unanswered: undefined,
      refusedLines: [],
      nextLine: 20_001,
    })
    expect(jobs.map((job) => job.line)).toEqual(lines.map((_, i) => i + 1))
    expect(new Set(jobs.map((job) => job.uuid)).size).toBe(20_000)
    expect(await broker.ask(`stats-tube ${put.tube}\r\n`, /\n\r\n$/)).toContain('current-jobs-ready: 20000\n')
  })

  it('skips empty lines and counts them', async () => {
    const [queue, put] = [await openHere(), newPut()]
    const account = await submitBatch(queue, from(['', 'a', '  ', 'b', '']), { put, defaults: { type: 'sleep' } })
    expect(account).toMatchObject({ accepted: 2, firstLine: 2, lastLine: 4, failed: undefined, nextLine: 6 })
  })

  it('stops at a bad line, with all lines before it accepted and none after it', async () => {
    const [queue, put] = [await openHere(), newPut()]
    const lines = Array.from({ length: 1000 }, (_, i) => (i === 600 ? '{"bad"' : `{"n":${i}}`))
    const account = await submitBatch(queue, from(lines), { put, defaults: { type: 'sleep' } })
    expect(account).toMatchObject({ accepted: 600, firstLine: 1, lastLine: 600, nextLine: 601, unanswered: undefined })
    expect(account.failed).toMatchObject({ line: 601, kind: 'line' })
    const payloads = (await takeAll(put.tube)).map((taken) => taken.payloadJson)
    expect(payloads).toEqual(lines.slice(0, 600))
  })

  it('stops at a line over the limit of the broker and never sends it', async () => {
    const [queue, put] = [await openHere(), newPut()]
    const before = await broker.stat('cmd-put')
    const account = await submitBatch(queue, from(['a', 'x'.repeat(70_000), 'b']), { put, defaults: { type: 'sleep' } })
    expect(account).toMatchObject({ accepted: 1, nextLine: 2, failed: { line: 2, kind: 'line' } })
    expect(account.failed?.message).toMatch(/7\d{4} bytes and the broker takes at most 65535/)
    expect(await broker.stat('cmd-put')).toBe(before + 1)
  })

  it('tells a fault of its source apart from a bad line', async () => {
    const [queue, put] = [await openHere(), newPut()]
    async function* lines() {
      yield 'a'
      throw Object.assign(new Error('EIO: i/o error'), { code: 'EIO' })
    }
    const account = await submitBatch(queue, lines(), { put, defaults: { type: 'sleep' } })
    expect(account).toMatchObject({ accepted: 1, failed: { line: 2, kind: 'input', message: 'EIO: i/o error' } })
  })

  it('is interrupted while its source waits, and says where to go on', async () => {
    const [queue, put] = [await openHere(), newPut()]
    const interrupt = new AbortController()
    async function* lines() {
      yield 'a'
      yield 'b'
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
    const [queue, put] = [await openHere(doomed.url), newPut()]
    async function* lines() {
      for (let i = 1; i <= 5000; i++) {
        if (i === 2000) process.kill(doomed.pid, 'SIGKILL')
        yield `{"line":${i}}`
      }
    }
    const accepted: number[] = []
    const account = await submitBatch(queue, lines(), {
      put,
      defaults: { type: 'sleep' },
      onAccepted: (job) => accepted.push(job.line),
    })
    const { unanswered, failed } = account
    expect(failed).toMatchObject({ kind: 'broker', message: expect.stringContaining('was lost') })
    expect(accepted).toEqual(Array.from({ length: account.accepted }, (_, i) => i + 1))
    expect(unanswered?.fromLine).toBe(account.accepted + 1)
    expect(failed?.line).toBe(unanswered?.fromLine)
    expect(account.nextLine).toBe((unanswered?.toLine ?? 0) + 1)
    expect((unanswered?.toLine ?? 0) - account.accepted).toBeLessThanOrEqual(256)

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
    })
  })

  it('never has more than 256 puts under way', async () => {
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
    expect(most).toBe(256)
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
      onAccepted: ({ uuid }) => accepted.push(uuid),
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
