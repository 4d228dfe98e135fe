import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer as createHttpServer } from 'node:http'
import type { Socket } from 'node:net'
import { networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { openBeanstalk } from '../../src/queue/beanstalk.ts'
import { describeBroker, openQueue, type PutOptions, type Queue, type QueueError } from '../../src/queue/queue.ts'
import { freePort, isOnBeanstalkd, startBroker, type TestBroker } from '../support/broker.ts'
import { leaveOut, until } from '../support/installation.ts'
import { codeOf, startFakeBroker, startPeer } from '../support/peer.ts'

let broker: TestBroker
let tubes = 0

beforeAll(async () => {
  broker = await startBroker()
})
afterAll(() => broker.stop())

const newTube = () => `tube-${++tubes}`
const inTube = (tube: string, more: Partial<PutOptions> = {}): PutOptions => ({
  tube,
  priority: 1337,
  delaySeconds: 0,
  ttrSeconds: 60,
  ...more,
})

async function openHere(url = broker.url, limits = {}): Promise<Queue> {
  const queue = await openBeanstalk(url, limits)
  onTestFinished(() => queue.close())
  return queue
}

async function reserveOne(queue: Queue) {
  const reservation = await queue.reserve(5)
  if (reservation === undefined) throw new Error('no job came within 5 s')
  return reservation
}

describe('a queue on beanstalkd', () => {
  it('is opened by its URL and knows the largest body', async () => {
    const queue = await openQueue(broker.url)
    onTestFinished(() => queue.close())
    expect(queue.maxBodyBytes).toBe(65_535)
    const small = await startBroker({ maxJobBytes: 1024 })
    onTestFinished(() => small.stop())
    expect((await openHere(small.url)).maxBodyBytes).toBe(1024)
  })

  it('hands a job on with its bytes, tube, priority, TTR, age and reserves', async () => {
    const tube = newTube()
    const queue = await openHere()
    const body = Buffer.from([0, 13, 10, 255, 13, 10])
    const ticket = await queue.put(body, inTube(tube, { priority: 4_294_967_295, ttrSeconds: 7 }))
    await queue.watch([tube])
    const job = await reserveOne(queue)
    expect(job).toMatchObject({ ticket, tube, priority: 4_294_967_295, ttrSeconds: 7, ageSeconds: 0, reserves: 1 })
    expect(job.body).toEqual(body)
  })

  it('takes an empty body, and one of exactly the limit', async () => {
    const tube = newTube()
    const queue = await openHere()
    await queue.watch([tube])
    for (const size of [0, queue.maxBodyBytes]) {
      await queue.put(new Uint8Array(size).fill(120), inTube(tube))
      const job = await reserveOne(queue)
      expect(job.body.length).toBe(size)
      await job.delete()
    }
    expect(await codeOf(queue.put(Buffer.alloc(queue.maxBodyBytes + 1), inTube(tube)))).toBe('too_big')
    expect(await queue.put(Buffer.from('after'), inTube(tube))).toMatch(/^\d+$/)
  })

  it('takes a job of 64 megabytes before its reply is overdue', async () => {
    const large = await startBroker({ maxJobBytes: 1 << 26 })
    onTestFinished(() => large.stop())
    const queue = await openHere(large.url)
    const body = Buffer.alloc(1 << 26, 'x')
    await queue.put(body, inTube('default'))
    const job = await queue.reserve(5)
    expect(job?.body.equals(body)).toBe(true)
  })

  it.each(['123', '007', '1e3', 'null', 'true', '0x10', 'a/b;c.$_()+-'])(
    'keeps the tube name %s as text',
    async (tube) => {
      const queue = await openHere()
      await queue.put(Buffer.from('x'), inTube(tube))
      await queue.watch([tube])
      const job = await reserveOne(queue)
      expect(job.tube).toBe(tube)
      await job.delete()
    },
  )

  it('puts each of many jobs under way into its own tube, in order', async () => {
    const [one, two] = [newTube(), newTube()]
    const queue = await openHere()
    const puts = Array.from({ length: 1000 }, (_, i) =>
      queue.put(Buffer.from(String(i)), inTube(i % 3 === 0 ? one : two)),
    )
    const tickets = await Promise.all(puts)
    expect(tickets.map(Number)).toEqual([...tickets.map(Number)].sort((a, b) => a - b))
    await queue.watch([one])
    for (let i = 0; i < 1000; i += 3) {
      const job = await reserveOne(queue)
      expect(String(job.body)).toBe(String(i))
      await job.delete()
    }
    expect(await queue.reserve(0)).toBeUndefined()
  })

  it('puts many texts at once, between other commands, each with its bytes and in order', async () => {
    const [one, two] = [newTube(), newTube()]
    const queue = await openHere()
    const texts = Array.from({ length: 300 }, (_, i) => (i % 2 === 0 ? `\u00fc\u20ac\ud83d\ude00 ${i}` : ''))
    const single = queue.put(Buffer.from('first'), inTube(one))
    const many = queue.putMany(texts, inTube(two, { priority: 5 }))
    const state = queue.ticketState('1')
    const last = queue.put(Buffer.from('last'), inTube(one))
    const tickets = [await single, ...(await many), await last].map(Number)
    expect(tickets).toEqual([...tickets].sort((a, b) => a - b))
    expect(await state).toMatch(/^[a-z]+$/)
    expect(await queue.putMany([], inTube(one))).toEqual([])
    await queue.watch([two])
    for (const text of texts) {
      const job = await reserveOne(queue)
      expect(String(job.body)).toBe(text)
      await job.delete()
    }
    const wrong = await queue.putMany(['a', 'b'], inTube('a b'))
    expect(wrong).toMatchObject([{ code: 'protocol' }, { code: 'protocol' }])
  })

  it('counts the jobs of a tube by their states, behind all puts before; a tube that is not there has none', async () => {
    const tube = newTube()
    const queue = await openHere()
    expect(await queue.countJobs(tube)).toEqual({ ready: 0, reserved: 0, delayed: 0, buried: 0 })
    void queue.putMany(Array(20).fill('x'), inTube(tube))
    void queue.putMany(Array(3).fill('x'), inTube(tube, { delaySeconds: 100 }))
    expect(await queue.countJobs(tube)).toEqual({ ready: 20, reserved: 0, delayed: 3, buried: 0 })
    await queue.watch([tube])
    await (await reserveOne(queue)).bury(1)
    await reserveOne(queue)
    expect(await queue.countJobs(tube)).toEqual({ ready: 18, reserved: 1, delayed: 3, buried: 1 })
    expect(await codeOf(queue.countJobs('a\r\nb'))).toBe('protocol')
  })

  it('watches exactly the tubes that are named', async () => {
    const [one, two, three] = [newTube(), newTube(), newTube()]
    const queue = await openHere()
    for (const tube of ['default', one, two, three]) await queue.put(Buffer.from(tube), inTube(tube))
    const takeAll = async () => {
      const seen: string[] = []
      for (let job = await queue.reserve(0); job; job = await queue.reserve(0)) {
        seen.push(job.tube)
        await job.release({ priority: 1, delaySeconds: 1000 })
      }
      return seen.sort()
    }
    await queue.watch([one, two])
    expect(await takeAll()).toEqual([one, two])
    await queue.watch([three])
    expect(await takeAll()).toEqual([three])
    await queue.watch(['default', three])
    expect(await takeAll()).toEqual(['default'])
  })

  it('answers a reserve that finds nothing with undefined after its time', async () => {
    const queue = await openHere()
    await queue.watch([newTube()])
    const started = performance.now()
    expect(await queue.reserve(1)).toBeUndefined()
    expect(performance.now() - started).toBeGreaterThan(900)
  })

  it('takes DEADLINE_SOON for nothing yet', async () => {
    const tube = newTube()
    const queue = await openHere()
    await queue.watch([tube])
    await queue.put(Buffer.from('x'), inTube(tube, { ttrSeconds: 1 }))
    const job = await reserveOne(queue)
    // In the last second of a TTR the broker answers at once: 5 s are not waited for.
    const started = performance.now()
    expect(await queue.reserve(5)).toBeUndefined()
    expect(performance.now() - started).toBeLessThan(2000)
    await job.touch()
    await job.delete()
  })

  it('deletes, releases with priority and delay, buries and touches', async () => {
    const tube = newTube()
    const queue = await openHere()
    await queue.watch([tube])
    const ticket = await queue.put(Buffer.from('x'), inTube(tube))
    const job = await reserveOne(queue)
    await job.touch()
    expect(await queue.ticketState(ticket)).toBe('reserved')
    await job.release({ priority: 5, delaySeconds: 0 })
    expect(await queue.ticketState(ticket)).toBe('ready')
    const again = await reserveOne(queue)
    expect(again).toMatchObject({ ticket, priority: 5, reserves: 2 })
    await again.release({ priority: 5, delaySeconds: 100 })
    expect(await queue.ticketState(ticket)).toBe('delayed')
    const other = await queue.put(Buffer.from('y'), inTube(tube))
    await (await reserveOne(queue)).bury(9)
    expect(await queue.ticketState(other)).toBe('buried')
    const third = await queue.put(Buffer.from('z'), inTube(tube))
    await (await reserveOne(queue)).delete()
    expect(await queue.ticketState(third)).toBe('gone')
  })

  it('tells not_found for whatever is done to a reservation that is no longer ours', async () => {
    const tube = newTube()
    const [mine, other] = [await openHere(), await openHere()]
    await mine.watch([tube])
    await other.watch([tube])
    await mine.put(Buffer.from('x'), inTube(tube))
    const job = await reserveOne(mine)
    // Given back, and taken by somebody else. Not by the end of its TTR: beanstalkd 1.12 forgets some of those while
    // their connection is idle (beanstalkd/beanstalkd#262).
    await job.release({ priority: 1337, delaySeconds: 0 })
    const theirs = await reserveOne(other)
    expect(theirs.ticket).toBe(job.ticket)
    expect(await codeOf(job.touch())).toBe('not_found')
    expect(await codeOf(job.delete())).toBe('not_found')
    expect(await codeOf(job.release({ priority: 1, delaySeconds: 0 }))).toBe('not_found')
    expect(await codeOf(job.bury(1))).toBe('not_found')
    await theirs.delete()
  })

  it('refuses names and numbers that would be another command on the wire, and goes on', async () => {
    const queue = await openHere()
    const body = Buffer.from('x')
    const wrong: Partial<PutOptions>[] = [
      { tube: 'a b' },
      { tube: 'a\r\ndelete 1' },
      { tube: '-a' },
      { priority: -1 },
      { priority: 2 ** 32 },
      { delaySeconds: 1.5 },
      { ttrSeconds: 0 },
      { ttrSeconds: Number.NaN },
    ]
    for (const options of wrong) expect(await codeOf(queue.put(body, inTube('default', options)))).toBe('protocol')
    expect(await codeOf(queue.watch([]))).toBe('protocol')
    expect(await codeOf(queue.ticketState('1\r\nquit'))).toBe('protocol')
    expect(await queue.put(body, inTube(newTube()))).toMatch(/^\d+$/)
  })

  it('tells refused when the broker drains', async () => {
    const draining = await startBroker()
    onTestFinished(() => draining.stop())
    const queue = await openHere(draining.url)
    process.kill(draining.pid, 'SIGUSR1')
    // The signal is taken up at some moment after kill() returns.
    const put = () =>
      queue.put(Buffer.from('x'), inTube('default')).then(
        () => 'taken',
        (error: QueueError) => error.code,
      )
    await expect.poll(put).toBe('refused')
  })
})

describe('a connection that ends', () => {
  it('rejects a reserve that waits, and all that comes later, when we close it', async () => {
    const queue = await openHere()
    await queue.watch([newTube()])
    const waiting = codeOf(queue.reserve(60))
    queue.close()
    queue.close()
    expect(await waiting).toBe('closed')
    expect(await codeOf(queue.put(Buffer.from('x'), inTube('default')))).toBe('closed')
    expect(await codeOf(queue.ticketState('1'))).toBe('closed')
  })

  it('gives its reservations back to the tube', async () => {
    const tube = newTube()
    const [mine, other] = [await openHere(), await openHere()]
    await mine.watch([tube])
    await other.watch([tube])
    const ticket = await mine.put(Buffer.from('x'), inTube(tube))
    await reserveOne(mine)
    mine.close()
    expect(await reserveOne(other)).toMatchObject({ ticket, reserves: 2 })
  })

  it('settles every command that waits when the broker is killed', async () => {
    const doomed = await startBroker()
    onTestFinished(() => doomed.stop())
    const queue = await openHere(doomed.url)
    await queue.put(Buffer.from('x'), inTube('default'))
    const job = await reserveOne(queue)
    const waiting = [queue.reserve(60), job.touch(), job.delete(), queue.put(Buffer.from('y'), inTube('other'))].map(
      codeOf,
    )
    const many = queue.putMany(['a', 'b'], inTube('other'))
    await doomed.kill('SIGKILL')
    expect(await many).toMatchObject([{ code: 'connection_lost' }, { code: 'connection_lost' }])
    expect(await Promise.all(waiting)).toEqual(Array(4).fill('connection_lost'))
    expect(await codeOf(job.bury(1))).toBe('connection_lost')
    expect(await codeOf(queue.reserve(1))).toBe('connection_lost')
  })

  it('is given up when the broker stands still', async () => {
    const frozen = await startBroker()
    onTestFinished(() => frozen.stop())
    const queue = await openHere(frozen.url, { replyMs: 400 })
    await frozen.kill('SIGSTOP')
    const started = performance.now()
    const puts = Array.from({ length: 50 }, () => codeOf(queue.put(Buffer.from('x'), inTube('default'))))
    expect(new Set(await Promise.all(puts))).toEqual(new Set(['connection_lost']))
    expect(performance.now() - started).toBeLessThan(3000)
  })

  it('is not given up while a reserve waits for longer than a reply may take', async () => {
    const queue = await openHere(broker.url, { replyMs: 300 })
    await queue.watch([newTube()])
    expect(await queue.reserve(2)).toBeUndefined()
  })

  it('is not given up because our own process was busy', async () => {
    const queue = await openHere(broker.url, { replyMs: 200 })
    const put = queue.put(Buffer.from('x'), inTube(newTube()))
    const until = performance.now() + 800
    while (performance.now() < until);
    expect(await put).toMatch(/^\d+$/)
  })

  it('cannot be opened again where nobody listens', async () => {
    const port = await freePort()
    const error = await openBeanstalk(`beanstalk://localhost:${port}`).catch((reason: unknown) => reason)
    expect(error).toMatchObject({
      code: 'unreachable',
      message: `cannot connect to beanstalkd at localhost:${port} (connection refused)`,
    })
    expect(await codeOf(openBeanstalk('beanstalk://no-such-host.invalid:1'))).toBe('unreachable')
    expect(await codeOf(openQueue('amqp://localhost'))).toBe('unreachable')
  })
})

describe('a broker at localhost', () => {
  const hasIPv6 = Object.values(networkInterfaces()).some((all) => all?.some(({ address }) => address === '::1'))

  it.for(['127.0.0.1', '::1'])('is found at %s, whatever else there is', async (host, context) => {
    if (host === '::1' && !hasIPv6) leaveOut(context, 'this machine has no ::1')
    const url = await startFakeBroker(() => undefined, host)
    const queue = await openHere(`beanstalk://localhost:${new URL(url).port}`)
    expect(queue.maxBodyBytes).toBe(65535)
  })

  it('is found at ::1 where something else answers at 127.0.0.1', async (context) => {
    if (!hasIPv6) leaveOut(context, 'this machine has no ::1')
    const port = Number(new URL(await startFakeBroker(() => undefined, '::1')).port)
    await startPeer((socket) => socket.write('SSH-2.0-OpenSSH_9\r\n'), '127.0.0.1', port)
    const queue = await openHere(`beanstalk://localhost:${port}`)
    expect(queue.maxBodyBytes).toBe(65535)
  })

  it('that is not there is told by the name that was given', async () => {
    const error = await openBeanstalk(`beanstalk://localhost:${await freePort()}`).catch((reason: Error) => reason)
    expect(error).toMatchObject({
      code: 'unreachable',
      message: expect.stringMatching(/cannot connect to beanstalkd at localhost:\d+ \(connection refused\)/),
    })
  })
})

describe('a peer that is no beanstalkd', () => {
  it('is named so when it is an HTTP server', async () => {
    const server = createHttpServer((_, response) => response.end('hello')).listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const { port } = server.address() as { port: number }
    const error = (await openBeanstalk(`beanstalk://127.0.0.1:${port}`).catch(
      (reason: unknown) => reason,
    )) as QueueError
    expect(error.code).toBe('unreachable')
    expect(error.message).toBe(`what answers at 127.0.0.1:${port} is not beanstalkd (it said "HTTP/1.1")`)
  })

  it.each([
    ['speaks first', (socket: Socket) => socket.write('SSH-2.0-OpenSSH_9\r\n')],
    ['sends zeros without end', (socket: Socket) => socket.write(Buffer.alloc(100_000))],
    ['closes at once', (socket: Socket) => socket.end()],
    ['says nothing', () => undefined],
    ['announces a body that never comes', (socket: Socket) => socket.write('OK 100\r\n')],
    ['announces a body of no length', (socket: Socket) => socket.write('OK many\r\nx\r\n')],
    ['sends statistics of something else', (socket: Socket) => socket.write('OK 11\r\n---\nfoo: 1\n\r\n')],
    ['answers with a word of JavaScript', (socket: Socket) => socket.write('constructor 3\r\nabc\r\n')],
  ])('is refused within its time when it %s', async (_, onSocket) => {
    const url = await startPeer((socket) => void onSocket(socket))
    expect(await codeOf(openBeanstalk(url, { connectMs: 500 }))).toBe('unreachable')
  })

  it.each([
    ['an unknown word', 'HELLO 1\r\n', 'protocol'],
    ['UNKNOWN_COMMAND', 'UNKNOWN_COMMAND\r\n', 'protocol'],
    ['INTERNAL_ERROR', 'INTERNAL_ERROR\r\n', 'protocol'],
    ['OUT_OF_MEMORY', 'OUT_OF_MEMORY\r\n', 'refused'],
    ['BURIED', 'BURIED 7\r\n', 'refused'],
    ['JOB_TOO_BIG', 'JOB_TOO_BIG\r\n', 'too_big'],
  ])('fails a put that is answered with %s', async (_, reply, code) => {
    const url = await startFakeBroker((socket) => socket.write(reply))
    const queue = await openHere(url)
    expect(await codeOf(queue.put(Buffer.from('x'), inTube('default')))).toBe(code)
  })

  it.each([
    ['at once', (socket: Socket, replies: string) => void socket.write(replies)],
    [
      'byte by byte',
      async (socket: Socket, replies: string) => {
        for (const c of replies) {
          socket.write(c)
          await new Promise(setImmediate)
        }
      },
    ],
  ])('answers each of many puts in its place when the replies come %s', async (_, write) => {
    const replies =
      'INSERTED 1\r\nJOB_TOO_BIG\r\nOUT_OF_MEMORY\r\nBURIED 4\r\nDRAINING\r\nINTERNAL_ERROR\r\nINSERTED 7\r\n'
    const url = await startFakeBroker((socket, command) => command.startsWith('put') && void write(socket, replies))
    const queue = await openHere(url)
    const answers = await queue.putMany(['a', '\u00fc', 'c', 'd', 'e', 'f', 'g'], inTube('default'))
    expect(answers.map((answer) => (typeof answer === 'string' ? answer : answer.code))).toEqual([
      '1',
      'too_big',
      'refused',
      'refused',
      'refused',
      'protocol',
      '7',
    ])
    expect(String(answers[1])).toContain('the job has 2 bytes; beanstalkd takes 65535')
  })

  it('ends the connection at a reply to one of many puts that no put has, and believes none after it', async () => {
    const url = await startFakeBroker(
      (socket, command) => command.startsWith('put') && void socket.write('INSERTED 1\r\nBAD_FORMAT\r\nINSERTED 3\r\n'),
    )
    const queue = await openHere(url)
    const many = queue.putMany(['a', 'b', 'c'], inTube('default'))
    const later = queue.putMany(['d'], inTube('default'))
    expect((await many).map((answer) => (typeof answer === 'string' ? answer : answer.code))).toEqual([
      '1',
      'protocol',
      'protocol',
    ])
    expect(await later).toMatchObject([{ code: 'protocol' }])
    await queue.closed
  })

  it('ends the connection when replies come that nobody asked for', async () => {
    const url = await startFakeBroker((socket) => socket.write('INSERTED 1\r\nINSERTED 2\r\nINSERTED 3\r\n'))
    const queue = await openHere(url)
    expect(await queue.put(Buffer.from('x'), inTube('default'))).toBe('1')
    expect(await codeOf(queue.put(Buffer.from('x'), inTube('default')))).toBe('protocol')
  })

  it('puts replies together that come byte by byte', async () => {
    const url = await startFakeBroker(async (socket, command) => {
      const reply = command.startsWith('stats-job') ? 'OK 28\r\n---\nstate: ready\ntube: "12"\n\r\n' : 'INSERTED 42\r\n'
      for (const c of reply) {
        socket.write(c)
        await new Promise(setImmediate)
      }
    })
    const queue = await openHere(url)
    expect(await queue.put(Buffer.from('x'), inTube('default'))).toBe('42')
    expect(await queue.ticketState('42')).toBe('ready')
  })
})

describe('what a broker says of itself', () => {
  it('tells its jobs, its limits, and whether they outlive it; the connection is closed again', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'qworker-durable-'))
    const durable = await startBroker({ dir, maxJobBytes: 2048 })
    onTestFinished(async () => {
      await durable.stop()
      rmSync(dir, { recursive: true })
    })
    const queue = await openHere(durable.url)
    await queue.put(Buffer.from('x'), inTube('default'))
    await queue.put(Buffer.from('y'), { ...inTube('default'), delaySeconds: 60 })
    const connections = await durable.stat('current-connections')
    expect(await describeBroker(durable.url)).toEqual({
      version: expect.stringMatching(/^1\.\d+/),
      isDurable: true,
      isDraining: false,
      maxBodyBytes: 2048,
      jobs: { ready: 1, reserved: 0, delayed: 1, buried: 0 },
    })
    await until('its connection is gone', async () => (await durable.stat('current-connections')) === connections)
    await durable.kill('SIGUSR1')
    await until('it drains', async () => (await describeBroker(durable.url)).isDraining)
    const other = await startBroker()
    onTestFinished(() => other.stop())
    // beanstalkd without -b; the embedded broker has a journal always.
    expect((await describeBroker(other.url)).isDurable).toBe(!isOnBeanstalkd)
  })

  it('refuses what is no broker, and what is not there', async () => {
    const url = await startPeer((socket) => socket.write('SSH-2.0-OpenSSH_9\r\n'))
    expect(await codeOf(describeBroker(url))).toBe('unreachable')
    expect(await codeOf(describeBroker(`beanstalk://127.0.0.1:${await freePort()}`))).toBe('unreachable')
    expect(await codeOf(describeBroker('redis://127.0.0.1'))).toBe('unreachable')
  })
})
