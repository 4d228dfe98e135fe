/**
 * The beanstalkd driver: what is asked, and what the replies mean. How they are carried is in beanstalk-wire.ts.
 *
 * Its promises are made where a reply is read, and nothing is awaited in between: the statistics of a job that was
 * reserved are asked for in the turn in which it came, and many puts are one write and one question.
 */

import { describe } from '../job/package.ts'
import { Fields, type ReplyReader } from './beanstalk-reply.ts'
import { type Expected, Wire } from './beanstalk-wire.ts'
import {
  type BrokerDescription,
  isTubeName,
  type JobCounts,
  type PutOptions,
  type Queue,
  QueueError,
  type Reservation,
  type Ticket,
  type TicketState,
} from './queue.ts'

const DEFAULT_PORT = 11300
const MAX_UINT32 = 4294967295
const MAX_VERSION_LENGTH = 40

export interface BeanstalkLimits {
  /** for the TCP connection, and again for the first reply */
  readonly connectMs: number
  /** for each reply, counted from when the one before it came; `reserve` has its own timeout on top */
  readonly replyMs: number
}

const LIMITS: BeanstalkLimits = { connectMs: 5_000, replyMs: 10_000 }

const INSERTED = 'INSERTED '
const RESERVED = 'RESERVED '

/** A body of statistics is of a few hundred bytes, one of a job of up to the most that beanstalkd's -z takes. */
const STATISTICS: Expected = { maxBodyBytes: 2 ** 20 }
const JOB: Expected = { maxBodyBytes: 2 ** 30 }

/** @throws QueueError `unreachable` when nothing answers at the URL, or something that is no beanstalkd */
export async function openBeanstalk(url: string, limits: Partial<BeanstalkLimits> = {}): Promise<Queue> {
  const { wire, stats } = await openWire(url, limits)
  return new BeanstalkQueue(wire, maxBodyBytesOf(stats))
}

/** @throws QueueError `unreachable`, as `openBeanstalk` */
export async function describeBeanstalk(
  url: string,
  limits: Partial<BeanstalkLimits> = {},
): Promise<BrokerDescription> {
  const { wire, stats } = await openWire(url, limits)
  wire.fail('closed', 'all is known')
  return {
    version: (stats.get('version') ?? '').slice(0, MAX_VERSION_LENGTH),
    // 0 without a binlog.
    isDurable: Number(stats.get('binlog-current-index') ?? 0) > 0,
    isDraining: stats.get('draining') === 'true',
    maxBodyBytes: maxBodyBytesOf(stats),
    jobs: jobCountsOf(stats),
  }
}

/** From the statistics of the broker, or of a tube. */
function jobCountsOf(stats: Fields): JobCounts {
  const count = (state: string) => Number(stats.get(`current-jobs-${state}`) ?? 0)
  return { ready: count('ready'), reserved: count('reserved'), delayed: count('delayed'), buried: count('buried') }
}

async function openWire(url: string, limits: Partial<BeanstalkLimits>): Promise<{ wire: Wire; stats: Fields }> {
  const { connectMs, replyMs } = { ...LIMITS, ...limits }
  const { hostname, port: digits } = new URL(url)
  const name = hostname.replace(/^\[(.*)\]$/, '$1') || 'localhost'
  const port = digits === '' ? DEFAULT_PORT : Number(digits)
  const openAt = async (host: string) => {
    const wire = new Wire(name, host, port, replyMs)
    await wire.connected(connectMs)
    return { wire, stats: await readStats(wire, Math.min(connectMs, replyMs)) }
  }
  return name === 'localhost' ? openHere(openAt) : openAt(name)
}

/**
 * On this machine, without a look-up of its name: that takes as long as all else that a `qproducer` does. By IPv4 first,
 * which is where beanstalkd listens unless it is told otherwise.
 */
async function openHere<T>(openAt: (host: string) => Promise<T>): Promise<T> {
  try {
    return await openAt('127.0.0.1')
  } catch (error) {
    return await openAt('::1').catch(() => {
      throw error
    })
  }
}

/** Also tells a beanstalkd from whatever else answers there. */
async function readStats(wire: Wire, limitMs: number): Promise<Fields> {
  let said = 'it closed the connection or did not answer'
  try {
    const stats = await askFields(wire, 'stats\r\n', { ...STATISTICS, limitMs })
    if (typeof stats !== 'string' && maxBodyBytesOf(stats) > 0) return stats
    said = typeof stats === 'string' ? `it said ${describe(stats)}` : 'its statistics have no max-job-size'
  } catch (cause) {
    if (!(cause instanceof QueueError)) throw cause
    if (cause.code === 'closed') throw cause
  }
  wire.fail('closed', 'the peer is no beanstalkd')
  throw new QueueError('unreachable', `what answers at ${wire.address} is not beanstalkd (${said})`)
}

/** Asks for statistics; the word itself when the reply is another. */
function askFields(wire: Wire, command: string, expected: Expected = STATISTICS): Promise<Fields | string> {
  return new Promise((resolve, reject) => {
    wire.ask(command, (reply) => resolve(readFields(reply)), reject, expected)
  })
}

function readFields(reply: ReplyReader): Fields | string {
  return reply.line.startsWith('OK ') ? new Fields(reply.readText()) : reply.word
}

/** 0 when it does not say. */
function maxBodyBytesOf(stats: Fields): number {
  const bytes = Number(stats.get('max-job-size'))
  return Number.isSafeInteger(bytes) && bytes > 0 ? bytes : 0
}

class BeanstalkQueue implements Queue {
  readonly maxBodyBytes: number
  readonly #wire: Wire
  #usedTube = 'default'
  readonly #watched = new Set(['default'])

  constructor(wire: Wire, maxBodyBytes: number) {
    this.#wire = wire
    this.maxBodyBytes = maxBodyBytes
  }

  get closed(): Promise<void> {
    return this.#wire.closed
  }

  // Runs up to the question without a pause, so that puts go out in the order of the calls.
  put(body: Uint8Array, options: PutOptions): Promise<Ticket> {
    return new Promise((resolve, reject) => {
      checkPut(options)
      this.#use(options.tube)
      const bytes = body.byteLength
      const onReply = (reply: ReplyReader) => {
        if (reply.line.startsWith(INSERTED)) resolve(reply.line.slice(INSERTED.length))
        else reject(this.#refusePut(reply.word, bytes))
      }
      this.#wire.ask(makePut(body, options), onReply, reject)
    })
  }

  async putMany(bodies: readonly string[], options: PutOptions): Promise<readonly (Ticket | QueueError)[]> {
    const answers: (Ticket | QueueError)[] = []
    if (bodies.length === 0) return answers
    try {
      checkPut(options)
      this.#use(options.tube)
      const head = makePutHead(options)
      let text = ''
      for (const body of bodies) text += `${head}${Buffer.byteLength(body)}\r\n${body}\r\n`
      await new Promise<void>((resolve, reject) => {
        const onReply = (reply: ReplyReader) => {
          if (reply.line.startsWith(INSERTED)) answers.push(reply.line.slice(INSERTED.length))
          else answers.push(this.#refusePut(reply.word, Buffer.byteLength(bodies[answers.length] ?? '')))
          if (answers.length === bodies.length) resolve()
        }
        this.#wire.ask(text, onReply, reject, { replies: bodies.length })
      })
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      while (answers.length < bodies.length) answers.push(error)
    }
    return answers
  }

  #refusePut(word: string, bytes: number): QueueError {
    switch (word) {
      case 'JOB_TOO_BIG':
        return new QueueError('too_big', `the job has ${bytes} bytes; beanstalkd takes ${this.maxBodyBytes}`)
      case 'BURIED':
        return new QueueError('refused', 'beanstalkd is out of memory and buried the job at once')
      default:
        return this.#wire.refuse('put', word)
    }
  }

  #use(tube: string): void {
    if (tube === this.#usedTube) return
    this.#usedTube = tube
    const onReply = (reply: ReplyReader) => {
      // Nobody waits for it: the puts that follow are on their way already, and go to a wrong tube. Stop then.
      if (!reply.line.startsWith('USING '))
        this.#wire.fail('protocol', `beanstalkd answered ${reply.word} to use ${tube}`)
    }
    this.#wire.ask(`use ${tube}\r\n`, onReply, () => undefined)
  }

  async watch(tubes: readonly string[]): Promise<void> {
    if (tubes.length === 0) throw new QueueError('protocol', 'a connection must watch at least one tube; none is named')
    tubes.forEach(checkTube)
    const wanted = new Set(tubes)
    // First watch, then ignore: a connection that watches nothing is refused with NOT_IGNORED.
    const added = [...wanted].filter((tube) => !this.#watched.has(tube)).map((tube) => this.#change('watch', tube))
    const removed = [...this.#watched].filter((tube) => !wanted.has(tube)).map((tube) => this.#change('ignore', tube))
    await Promise.all([...added, ...removed])
  }

  #change(verb: 'watch' | 'ignore', tube: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const onReply = (reply: ReplyReader) => {
        if (!reply.line.startsWith('WATCHING ')) return reject(this.#wire.refuse(verb, reply.word))
        if (verb === 'watch') this.#watched.add(tube)
        else this.#watched.delete(tube)
        resolve()
      }
      this.#wire.ask(`${verb} ${tube}\r\n`, onReply, reject)
    })
  }

  reserve(timeoutSeconds: number): Promise<Reservation | undefined> {
    const seconds = Math.max(0, Math.ceil(timeoutSeconds))
    return new Promise((resolve, reject) => {
      const onReply = (reply: ReplyReader) => {
        const { line } = reply
        if (line.startsWith(RESERVED)) this.#askReserved(reply, resolve, reject)
        else if (line === 'TIMED_OUT' || line === 'DEADLINE_SOON') resolve(undefined)
        else reject(this.#wire.refuse('reserve', reply.word))
      }
      const limitMs = seconds * 1000 + this.#wire.replyMs
      this.#wire.ask(`reserve-with-timeout ${seconds}\r\n`, onReply, reject, { ...JOB, limitMs })
    })
  }

  reserveTicket(ticket: Ticket): Promise<Reservation | undefined> {
    return new Promise((resolve, reject) => {
      checkTicket(ticket)
      const onReply = (reply: ReplyReader) => {
        const { line } = reply
        if (line.startsWith(RESERVED)) this.#askReserved(reply, resolve, reject)
        else if (line === 'NOT_FOUND') resolve(undefined)
        else reject(this.#wire.refuse('reserve-job', reply.word))
      }
      this.#wire.ask(`reserve-job ${ticket}\r\n`, onReply, reject, JOB)
    })
  }

  /** Asks for all else that is to be known of a job that has just come. */
  #askReserved(
    reply: ReplyReader,
    resolve: (reservation: Reservation | undefined) => void,
    reject: (error: QueueError) => void,
  ): void {
    const wire = this.#wire
    const ticket = reply.line.slice(RESERVED.length, reply.line.lastIndexOf(' '))
    const body = reply.takeBody()
    const onReply = (about: ReplyReader) => {
      const stats = readFields(about)
      if (typeof stats !== 'string') {
        const reservation = makeReservation(wire, ticket, body, stats)
        if (reservation instanceof QueueError) reject(reservation)
        else resolve(reservation)
      } else if (stats === 'NOT_FOUND') {
        // Gone between the two replies: its TTR was over and somebody deleted it.
        resolve(undefined)
      } else reject(wire.refuse('stats-job', stats))
    }
    wire.ask(`stats-job ${ticket}\r\n`, onReply, reject, STATISTICS)
  }

  async ticketState(ticket: Ticket): Promise<TicketState> {
    checkTicket(ticket)
    const stats = await askFields(this.#wire, `stats-job ${ticket}\r\n`)
    if (typeof stats === 'string' && stats !== 'NOT_FOUND') throw this.#wire.refuse('stats-job', stats)
    const state = typeof stats === 'string' ? undefined : stats.get('state')
    switch (state) {
      case undefined:
        return 'gone'
      case 'ready':
      case 'delayed':
      case 'reserved':
      case 'buried':
        return state
      default:
        throw new QueueError('protocol', `beanstalkd tells an unknown state of job ${ticket}: ${describe(state)}`)
    }
  }

  async countJobs(tube: string): Promise<JobCounts> {
    checkTube(tube)
    const stats = await askFields(this.#wire, `stats-tube ${tube}\r\n`)
    if (typeof stats !== 'string') return jobCountsOf(stats)
    if (stats === 'NOT_FOUND') return { ready: 0, reserved: 0, delayed: 0, buried: 0 }
    throw this.#wire.refuse('stats-tube', stats)
  }

  close(): void {
    this.#wire.fail('closed', `the connection to beanstalkd at ${this.#wire.address} is closed`)
  }
}

function makePutHead({ priority, delaySeconds, ttrSeconds }: PutOptions): string {
  return `put ${priority} ${delaySeconds} ${ttrSeconds} `
}

/** The bytes are those of this moment, whatever becomes of the body before they go out. */
function makePut(body: Uint8Array, options: PutOptions): Buffer {
  const head = `${makePutHead(options)}${body.byteLength}\r\n`
  const put = Buffer.allocUnsafe(head.length + body.byteLength + 2)
  put.write(head, 'latin1')
  put.set(body, head.length)
  put.write('\r\n', head.length + body.byteLength, 'latin1')
  return put
}

function makeReservation(wire: Wire, ticket: Ticket, body: Buffer, stats: Fields): Reservation | QueueError {
  const settle = (verb: string, done: string, command: string) =>
    new Promise<void>((resolve, reject) => {
      const onReply = (reply: ReplyReader) => {
        if (reply.line === done) resolve()
        else if (reply.line === 'NOT_FOUND') {
          const message = `cannot ${verb} job ${ticket}: it is not there, or no longer ours`
          reject(new QueueError('not_found', message))
        } else reject(wire.refuse(verb, reply.word))
      }
      wire.ask(command, onReply, reject)
    })
  // In the order in which beanstalkd tells them.
  const tube = stats.get('tube')
  const priority = stats.getNumber('pri')
  const ageSeconds = stats.getNumber('age')
  const ttrSeconds = stats.getNumber('ttr')
  const reserves = stats.getNumber('reserves')
  const buries = stats.getNumber('buries')
  if (tube === undefined || Number.isNaN(priority + ageSeconds + ttrSeconds + reserves + buries)) {
    // The connection ends, so that the job falls back to its tube.
    const message = `beanstalkd at ${wire.address} does not tell all that it should of job ${ticket}`
    wire.fail('protocol', message)
    return new QueueError('protocol', message)
  }
  return {
    ...{ ticket, body, tube, priority, ttrSeconds, ageSeconds, reserves, buries },
    touch: () => settle('touch', 'TOUCHED', `touch ${ticket}\r\n`),
    delete: () => settle('delete', 'DELETED', `delete ${ticket}\r\n`),
    async release({ priority, delaySeconds }) {
      checkNumber('priority', priority, 0)
      checkNumber('delay', delaySeconds, 0)
      await settle('release', 'RELEASED', `release ${ticket} ${priority} ${delaySeconds}\r\n`)
    },
    async bury(priority) {
      checkNumber('priority', priority, 0)
      await settle('bury', 'BURIED', `bury ${ticket} ${priority}\r\n`)
    },
  }
}

function checkTicket(ticket: Ticket): void {
  if (!/^\d{1,20}$/.test(ticket)) throw new QueueError('protocol', `a ticket is a number; this is ${describe(ticket)}`)
}

function checkPut({ tube, priority, delaySeconds, ttrSeconds }: PutOptions): void {
  checkTube(tube)
  checkNumber('priority', priority, 0)
  checkNumber('delay', delaySeconds, 0)
  checkNumber('TTR', ttrSeconds, 1)
}

function checkTube(name: string): void {
  if (isTubeName(name)) return
  throw new QueueError(
    'protocol',
    `a tube name is 1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ), not beginning with -; this is ${describe(name)}`,
  )
}

function checkNumber(what: string, value: number, min: number): void {
  if (Number.isInteger(value) && value >= min && value <= MAX_UINT32) return
  throw new QueueError('protocol', `${what} must be a whole number from ${min} to ${MAX_UINT32}; it is ${value}`)
}
