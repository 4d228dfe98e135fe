import type { Socket } from 'node:net'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { openBeanstalk } from '../../src/queue/beanstalk.ts'
import type { PutOptions, Queue, QueueError } from '../../src/queue/queue.ts'
import { startBroker, type TestBroker } from '../support/broker.ts'
import { codeOf, startFakeBroker } from '../support/peer.ts'

let broker: TestBroker

beforeAll(async () => {
  broker = await startBroker({ maxJobBytes: 8 * 2 ** 20 })
})
afterAll(() => broker.stop())

const PUT: PutOptions = { tube: 'default', priority: 1337, delaySeconds: 0, ttrSeconds: 60 }
const STATS =
  '---\nid: 5\ntube: default\nstate: reserved\npri: 1337\nage: 2\ndelay: 0\nttr: 60\ntime-left: 59\nfile: 0\nreserves: 1\ntimeouts: 0\nreleases: 0\nburies: 0\nkicks: 0\n'
const BODY = 'a body\r\nof two lines'

/** What beanstalkd would say. */
function answer(command: string): string {
  const [verb = ''] = command.split(/[ \r]/)
  switch (verb) {
    case 'reserve-with-timeout':
      return `RESERVED 5 ${BODY.length}\r\n${BODY}\r\n`
    case 'stats-job':
      return `OK ${STATS.length}\r\n${STATS}\r\n`
    case 'put':
      return 'INSERTED 5\r\n'
    case 'touch':
      return 'TOUCHED\r\n'
    case 'release':
      return 'RELEASED\r\n'
    case 'bury':
      return 'BURIED\r\n'
    default:
      return 'DELETED\r\n'
  }
}

async function openHere(url: string, limits = {}): Promise<Queue> {
  const queue = await openBeanstalk(url, limits)
  onTestFinished(() => queue.close())
  return queue
}

/** A fake broker that gives one command another reply. */
function startWrong(verb: string, reply: string | ((socket: Socket) => void)): Promise<string> {
  return startFakeBroker((socket, command) => {
    if (!command.startsWith(verb)) socket.write(answer(command))
    else if (typeof reply === 'string') socket.write(reply)
    else reply(socket)
  })
}

describe('the connection of a queue', () => {
  it('takes replies that are cut at any byte', async () => {
    let cut = 0
    const url = await startFakeBroker((socket, command) => {
      const reply = answer(command)
      socket.setNoDelay(true)
      if (cut >= reply.length) return void socket.write(reply)
      socket.write(reply.slice(0, cut))
      // The first part has been read when its own reader's turn is over.
      setTimeout(() => socket.write(reply.slice(cut)), 2)
    })
    const queue = await openHere(url)
    const longest = Math.max(...['stats-job 5', 'reserve-with-timeout 1'].map((command) => answer(command).length))
    for (cut = 1; cut <= longest; cut++) {
      const job = await queue.reserve(1)
      expect(job).toMatchObject({ ticket: '5', tube: 'default', priority: 1337, ttrSeconds: 60, ageSeconds: 2 })
      expect(String(job?.body)).toBe(BODY)
      if (cut > 12) continue
      await job?.touch()
      await job?.release({ priority: 1, delaySeconds: 0 })
      await job?.bury(1)
      await job?.delete()
      expect(await queue.put(Buffer.from('x'), PUT)).toBe('5')
    }
  })

  it('sends what is asked in one turn with one write', async () => {
    const heard: string[] = []
    const url = await startFakeBroker((socket, commands) => {
      heard.push(commands)
      socket.write(
        commands
          .match(/put.*\r\nx\r\n|.+\r\n/g)
          ?.map(answer)
          .join('') ?? '',
      )
    })
    const queue = await openHere(url)
    const job = await queue.reserve(1)
    heard.length = 0
    const deleted = job?.delete()
    const next = queue.reserve(3)
    await Promise.all([deleted, next])
    expect(heard).toEqual(['delete 5\r\nreserve-with-timeout 3\r\n', 'stats-job 5\r\n'])
    heard.length = 0
    await Promise.all([queue.put(Buffer.from('x'), PUT), queue.putMany(['x', 'x'], PUT), (await next)?.touch()])
    const put = 'put 1337 0 60 1\r\nx\r\n'
    expect(heard.join('')).toBe(`${put}${put}${put}touch 5\r\n`)
  })

  it('carries many large bodies both ways, side by side and whole', async () => {
    const queue = await openHere(broker.url)
    const bodies = Array.from({ length: 12 }, (_, i) => Buffer.alloc((i + 1) * 400_009, `${i}\r\n`))
    await Promise.all(bodies.map((body) => queue.put(body, PUT)))
    for (const body of bodies) {
      const job = await queue.reserve(5)
      expect(job?.body.equals(body)).toBe(true)
      await job?.delete()
    }
    const texts = bodies.map(String)
    await queue.putMany(texts, PUT)
    for (const text of texts) {
      const job = await queue.reserve(5)
      expect(String(job?.body) === text).toBe(true)
      await job?.delete()
    }
  })

  it('puts the bytes that a body had when it was put', async () => {
    const queue = await openHere(broker.url)
    const body = Buffer.from('first')
    const put = queue.put(body, PUT)
    body.fill('?')
    await put
    const job = await queue.reserve(5)
    expect(String(job?.body)).toBe('first')
    await job?.delete()
  })
})

describe('a broker that means harm', () => {
  it.each([
    ['a length beyond all', 'reserve', 'RESERVED 5 99999999999999999999\r\n'],
    ['a length above that of any job', 'reserve', `RESERVED 5 ${2 ** 30 + 1}\r\n`],
    ['statistics larger than any', 'stats-job', `OK ${2 ** 20 + 1}\r\n`],
    ['a body to a command that has none', 'put', 'OK 3\r\nabc\r\n'],
    ['a body that goes on', 'reserve', 'RESERVED 5 3\r\nabcdef\r\n'],
    ['a body that ends early', 'stats-job', 'OK 300\r\n---\r\nOK 5\r\n'.padEnd(400, 'x')],
    ['a job of which it tells too little', 'stats-job', 'OK 10\r\n---\npri: 1\r\n'],
    ['the statistics before they are asked for', 'reserve', `${answer('reserve-with-timeout')}${answer('stats-job')}`],
    ['a second reply', 'put', 'INSERTED 5\r\nINSERTED 6\r\nINSERTED 7\r\n'],
    ['a word of another command', 'reserve', 'DELETED\r\n'],
  ])('ends the connection by %s', async (_, verb, reply) => {
    const queue = await openHere(await startWrong(verb, reply))
    const first = queue.put(Buffer.from('x'), PUT).catch((error: QueueError) => error.code)
    await first
    expect(await codeOf(queue.reserve(1))).toBe('protocol')
    expect(await codeOf(queue.ticketState('5'))).toBe('protocol')
    await queue.closed
  })

  it('is heard no further when its line has no end', async () => {
    let ended: Promise<unknown> | undefined
    const url = await startWrong('put', (socket) => {
      // Reset, with what it had not sent yet: no error here.
      ended = new Promise((resolve) => socket.on('close', resolve))
      const shout = () => {
        while (socket.writable && socket.write(Buffer.alloc(65_536, 'x')));
      }
      socket.on('drain', shout)
      shout()
    })
    const queue = await openHere(url)
    expect(await codeOf(queue.put(Buffer.from('x'), PUT))).toBe('protocol')
    await ended
  })

  it('ends the connection by speaking while nothing is asked', async () => {
    let say: (text: string) => void = () => undefined
    const url = await startFakeBroker((socket, command) => {
      say = (text) => socket.write(text)
      socket.write(answer(command))
    })
    const queue = await openHere(url)
    await queue.put(Buffer.from('x'), PUT)
    say('DELETED\r\n')
    await queue.closed
    expect(await codeOf(queue.put(Buffer.from('x'), PUT))).toBe('protocol')
  })

  it.each([
    ['a line', 'RESER'],
    ['a line, before its last byte', 'RESERVED 5 3\r'],
    ['a body', 'RESERVED 5 300\r\nabc'],
    ['a body, before its last byte', 'RESERVED 5 3\r\nabc\r'],
  ])('loses the connection, and nobody waits, when it goes within %s', async (_, half) => {
    const queue = await openHere(await startWrong('reserve', (socket) => socket.end(half)))
    const waiting = [queue.reserve(1), queue.ticketState('5'), queue.countJobs('default')].map(codeOf)
    expect(await Promise.all(waiting)).toEqual(Array(3).fill('connection_lost'))
    await queue.closed
  })

  it('is given up when the rest of a body does not come', async () => {
    const url = await startWrong('reserve', (socket) => {
      socket.write('RESERVED 5 300\r\nabc')
      const drip = setInterval(() => socket.write('x'), 50)
      socket.on('close', () => clearInterval(drip))
    })
    const queue = await openHere(url, { replyMs: 300 })
    expect(await codeOf(queue.reserve(0))).toBe('connection_lost')
  })
})
