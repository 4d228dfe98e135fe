/**
 * The beanstalkd driver; the only file that knows fivebeans.
 *
 * fivebeans matches replies to commands and nothing else, so this file adds what a caller must be able to rely on:
 * - Every promise is settled. fivebeans drops its callbacks when the connection closes; here each command is kept in
 *   `pending` until it is answered, and all of them are rejected when the connection fails.
 * - No command waits for ever. Replies come in the order of the commands, so one clock watches the oldest only.
 * - A long reply is handed to it whole: of one that comes in pieces it copies all that it has with each piece.
 * - No exception leaves a callback: in fivebeans it would leave its buffer in the middle of a reply.
 * - Replies in YAML are read here, as text: a YAML parser makes a number of a tube that is called 007.
 * - Many puts are one write and one handler that reads the replies to all of them. One by one fivebeans is at 35,000/s:
 *   it makes a system call of each.
 */

import { createRequire, Module } from 'node:module'
import type FiveBeansClient from 'fivebeans/lib/client.js'
import { describe } from '../job/package.ts'
import { countMissing, type Dictionary, readDictionary } from './beanstalk-reply.ts'
import {
  type BrokerDescription,
  isTubeName,
  type JobCounts,
  type PutOptions,
  type Queue,
  QueueError,
  type QueueErrorCode,
  type Reservation,
  type Ticket,
  type TicketState,
} from './queue.ts'

const Client = loadClient()

/**
 * fivebeans without js-yaml: its 40 files are a fifth of the time of a `qproducer`, and no reply is read by it here. It
 * finds an empty module in its place, and nobody else does.
 */
function loadClient(): typeof FiveBeansClient {
  const require = createRequire(import.meta.url)
  const client = require.resolve('fivebeans/lib/client.js')
  const yaml = createRequire(client).resolve('js-yaml')
  const loaded = require.cache[yaml]
  require.cache[yaml] = Object.assign(new Module(yaml), { exports: {}, loaded: true })
  try {
    return require(client)
  } finally {
    if (loaded === undefined) delete require.cache[yaml]
    else require.cache[yaml] = loaded
  }
}

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

/** What the broker said: the expected word with its arguments, or another word. */
type Reply = { readonly ok: true; readonly args: readonly unknown[] } | { readonly ok: false; readonly word: string }

type Callback = (word: string | null, ...args: unknown[]) => void

interface Command {
  readonly limitMs: number
  readonly resolve: (reply: Reply) => void
  readonly reject: (error: QueueError) => void
}

/** @throws QueueError `unreachable` when nothing answers at the URL, or something that is no beanstalkd */
export async function openBeanstalk(url: string, limits: Partial<BeanstalkLimits> = {}): Promise<Queue> {
  const { connection, stats } = await openConnection(url, limits)
  return new BeanstalkQueue(connection, maxBodyBytesOf(stats))
}

/** @throws QueueError `unreachable`, as `openBeanstalk` */
export async function describeBeanstalk(
  url: string,
  limits: Partial<BeanstalkLimits> = {},
): Promise<BrokerDescription> {
  const { connection, stats } = await openConnection(url, limits)
  connection.fail('closed', 'all is known')
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
function jobCountsOf(stats: Dictionary): JobCounts {
  const count = (state: string) => Number(stats.get(`current-jobs-${state}`) ?? 0)
  return { ready: count('ready'), reserved: count('reserved'), delayed: count('delayed'), buried: count('buried') }
}

async function openConnection(
  url: string,
  limits: Partial<BeanstalkLimits>,
): Promise<{ connection: Connection; stats: Dictionary }> {
  const { connectMs, replyMs } = { ...LIMITS, ...limits }
  const { hostname, port } = new URL(url)
  const host = hostname.replace(/^\[(.*)\]$/, '$1') || 'localhost'
  const connection = new Connection(host, port === '' ? DEFAULT_PORT : Number(port), replyMs)
  await connection.connect(connectMs)
  return { connection, stats: await readStats(connection, Math.min(connectMs, replyMs)) }
}

/** Also tells a beanstalkd from whatever else answers there. */
async function readStats(connection: Connection, limitMs: number): Promise<Dictionary> {
  let said = 'it closed the connection or did not answer'
  try {
    const stats = await connection.askStats((client, callback) => client.stats(callback), limitMs)
    if (typeof stats !== 'string' && maxBodyBytesOf(stats) > 0) return stats
    said = typeof stats === 'string' ? `it said ${describe(stats)}` : 'its statistics have no max-job-size'
  } catch (cause) {
    if (!(cause instanceof QueueError)) throw cause
    if (cause.code === 'closed') throw cause
  }
  connection.fail('closed', 'the peer is no beanstalkd')
  throw new QueueError('unreachable', `what answers at ${connection.address} is not beanstalkd (${said})`)
}

/** 0 when it does not say. */
function maxBodyBytesOf(stats: Dictionary): number {
  const bytes = Number(stats.get('max-job-size'))
  return Number.isSafeInteger(bytes) && bytes > 0 ? bytes : 0
}

class BeanstalkQueue implements Queue {
  readonly maxBodyBytes: number
  readonly #connection: Connection
  #usedTube = 'default'
  readonly #watched = new Set(['default'])

  constructor(connection: Connection, maxBodyBytes: number) {
    this.#connection = connection
    this.maxBodyBytes = maxBodyBytes
  }

  get closed(): Promise<void> {
    return this.#connection.closed
  }

  // Runs up to the write without a pause, so that puts go out in the order of the calls.
  async put(body: Uint8Array, options: PutOptions): Promise<Ticket> {
    const { tube, priority, delaySeconds, ttrSeconds } = options
    checkPut(options)
    this.#use(tube)
    const bytes = Buffer.isBuffer(body) ? body : Buffer.from(body.buffer, body.byteOffset, body.byteLength)
    const reply = await this.#connection.ask((client, callback) =>
      client.put(priority, delaySeconds, ttrSeconds, bytes, callback),
    )
    if (reply.ok) return String(reply.args[0])
    throw this.#refusePut(reply.word, bytes.length)
  }

  async putMany(bodies: readonly string[], options: PutOptions): Promise<readonly (Ticket | QueueError)[]> {
    const { tube, priority, delaySeconds, ttrSeconds } = options
    const answers: (Ticket | QueueError)[] = []
    const read = (reply: string) => {
      if (reply.startsWith(INSERTED)) answers.push(reply.slice(INSERTED.length))
      else answers.push(this.#refusePut(reply.split(' ', 1)[0] ?? '', Buffer.byteLength(bodies[answers.length] ?? '')))
    }
    if (bodies.length === 0) return answers
    try {
      checkPut(options)
      this.#use(tube)
      const head = `put ${priority} ${delaySeconds} ${ttrSeconds} `
      let text = ''
      for (const body of bodies) text += `${head}${Buffer.byteLength(body)}\r\n${body}\r\n`
      await this.#connection.askLines(text, bodies.length, read)
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
        return this.#connection.refuse('put', word)
    }
  }

  #use(tube: string): void {
    if (tube === this.#usedTube) return
    this.#usedTube = tube
    // Not awaited: the puts that follow are on their way already. Should it fail they go to a wrong tube: stop then.
    this.#connection
      .ask((client, callback) => client.use(tube, callback))
      .then(
        (reply) => reply.ok || this.#connection.fail('protocol', `beanstalkd answered ${reply.word} to use ${tube}`),
        () => undefined,
      )
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

  async #change(verb: 'watch' | 'ignore', tube: string): Promise<void> {
    const reply = await this.#connection.ask((client, callback) => client[verb](tube, callback))
    if (!reply.ok) throw this.#connection.refuse(verb, reply.word)
    if (verb === 'watch') this.#watched.add(tube)
    else this.#watched.delete(tube)
  }

  async reserve(timeoutSeconds: number): Promise<Reservation | undefined> {
    const seconds = Math.max(0, Math.ceil(timeoutSeconds))
    const reply = await this.#connection.ask(
      (client, callback) => client.reserve_with_timeout(seconds, callback),
      seconds * 1000 + this.#connection.replyMs,
    )
    if (!reply.ok) {
      if (reply.word === 'TIMED_OUT' || reply.word === 'DEADLINE_SOON') return undefined
      throw this.#connection.refuse('reserve', reply.word)
    }
    return this.#makeReservation(reply.args)
  }

  async reserveTicket(ticket: Ticket): Promise<Reservation | undefined> {
    checkTicket(ticket)
    const reply = await this.#connection.ask((client, callback) => sendReserveJob(client, ticket, callback))
    if (reply.ok) return this.#makeReservation(reply.args)
    if (reply.word === 'NOT_FOUND') return undefined
    throw this.#connection.refuse('reserve-job', reply.word)
  }

  async #makeReservation([number, body]: readonly unknown[]): Promise<Reservation | undefined> {
    const ticket = String(number)
    const stats = await this.#statsOf(ticket)
    // Gone between the two replies: its TTR was over and somebody deleted it.
    return stats && makeReservation(this.#connection, ticket, body as Buffer, stats)
  }

  async ticketState(ticket: Ticket): Promise<TicketState> {
    checkTicket(ticket)
    const state = (await this.#statsOf(ticket))?.get('state')
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
    const stats = await this.#connection.askStats((client, callback) => client.stats_tube(tube, callback))
    if (typeof stats !== 'string') return jobCountsOf(stats)
    if (stats === 'NOT_FOUND') return jobCountsOf(new Map())
    throw this.#connection.refuse('stats-tube', stats)
  }

  async #statsOf(ticket: Ticket): Promise<Dictionary | undefined> {
    const stats = await this.#connection.askStats((client, callback) => client.stats_job(ticket, callback))
    if (typeof stats !== 'string') return stats
    if (stats === 'NOT_FOUND') return undefined
    throw this.#connection.refuse('stats-job', stats)
  }

  close(): void {
    this.#connection.fail('closed', `the connection to beanstalkd at ${this.#connection.address} is closed`)
  }
}

/**
 * `reserve-job`, which fivebeans 1.5 does not know: its `reserve_with_timeout` makes the handler for the same reply, and
 * ours is the line that is written.
 */
function sendReserveJob(client: FiveBeansClient, ticket: Ticket, callback: Callback): void {
  const stream = { write: () => client.stream?.write(`reserve-job ${ticket}\r\n`) }
  client.reserve_with_timeout.call({ handlers: client.handlers, stream } as unknown as FiveBeansClient, 0, callback)
}

function makeReservation(connection: Connection, ticket: Ticket, body: Buffer, stats: Dictionary): Reservation {
  const settle = async (verb: string, send: (client: FiveBeansClient, callback: Callback) => void) => {
    const reply = await connection.ask(send)
    if (reply.ok) return
    if (reply.word === 'NOT_FOUND') {
      throw new QueueError('not_found', `cannot ${verb} job ${ticket}: it is not there, or no longer ours`)
    }
    throw connection.refuse(verb, reply.word)
  }
  return {
    ticket,
    body,
    tube: stats.get('tube') ?? '',
    priority: Number(stats.get('pri')),
    ttrSeconds: Number(stats.get('ttr')),
    ageSeconds: Number(stats.get('age')),
    reserves: Number(stats.get('reserves')),
    buries: Number(stats.get('buries')),
    touch: () => settle('touch', (client, callback) => client.touch(ticket, callback)),
    delete: () => settle('delete', (client, callback) => client.destroy(ticket, callback)),
    async release({ priority, delaySeconds }) {
      checkNumber('priority', priority, 0)
      checkNumber('delay', delaySeconds, 0)
      await settle('release', (client, callback) => client.release(ticket, priority, delaySeconds, callback))
    },
    async bury(priority) {
      checkNumber('priority', priority, 0)
      await settle('bury', (client, callback) => client.bury(ticket, priority, callback))
    },
  }
}

/** A fivebeans client whose commands are always answered: by the broker, or by the end of the connection. */
class Connection {
  readonly address: string
  readonly replyMs: number
  readonly closed: Promise<void>
  readonly #client: FiveBeansClient
  /** oldest first */
  readonly #pending = new Set<Command>()
  /** when the oldest pending command became the oldest */
  #oldestSince = 0
  #clock: NodeJS.Timeout | undefined
  #overdue: Command | undefined
  #tellClosed: () => void = () => undefined
  #failure: { code: QueueErrorCode; message: string; cause: unknown } | undefined

  constructor(host: string, port: number, replyMs: number) {
    this.address = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
    this.replyMs = replyMs
    this.#client = new Client(host, port)
    this.closed = new Promise((resolve) => {
      this.#tellClosed = resolve
    })
  }

  connect(limitMs: number): Promise<void> {
    const client = this.#client
    return new Promise((resolve, reject) => {
      let connecting = true
      const giveUp = (reason: string, cause?: unknown) => {
        clearTimeout(timer)
        this.fail('unreachable', reason)
        reject(new QueueError('unreachable', `cannot connect to beanstalkd at ${this.address} (${reason})`, cause))
      }
      const timer = setTimeout(() => giveUp(`no answer within ${limitMs / 1000} s`), limitMs)
      client.once('connect', () => {
        clearTimeout(timer)
        connecting = false
        if (this.#failure === undefined) resolve()
      })
      client.on('error', (error: unknown) => {
        if (connecting) giveUp(describeCause(error), error)
        else this.#lose(describeCause(error), error)
      })
      client.on('close', () => this.#lose('the broker closed it'))
      this.#guardReplies()
      client.connect()
      this.#gatherReplies()
      client.stream?.setNoDelay(true)
      client.stream?.setKeepAlive(true, 60_000)
    })
  }

  /** Sends one command. The promise is rejected only when the connection fails; another reply is a value. */
  ask(send: (client: FiveBeansClient, callback: Callback) => void, limitMs: number = this.replyMs): Promise<Reply> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) return reject(this.#makeError(this.#failure))
      const command: Command = { limitMs, resolve, reject }
      if (this.#pending.size === 0) this.#oldestSince = performance.now()
      this.#pending.add(command)
      this.#clock ??= setInterval(() => this.#checkOldest(), Math.min(1000, this.replyMs / 4, limitMs / 4)).unref()
      this.#cork()
      send(this.#client, (word, ...args) => {
        if (!this.#pending.delete(command)) return
        this.#oldestSince = performance.now()
        resolve(word === null ? { ok: true, args } : { ok: false, word })
      })
    })
  }

  /** Commands of one turn go out in one write: with many in flight, and when a deletion and a `reserve` come together. */
  #cork(): void {
    const { stream } = this.#client
    if (stream === null || stream.writableCorked > 0) return
    stream.cork()
    process.nextTick(() => stream.uncork())
  }

  /**
   * Sends commands that are answered with a line each, and hands each line on when it comes. The promise is rejected
   * when the connection fails.
   */
  async askLines(text: string, count: number, onLine: (line: string) => void): Promise<void> {
    let missing = count
    await this.ask((client, callback) => {
      const handler = {
        complete: false,
        success: true,
        args: [],
        reset: () => undefined,
        process: (bytes: Buffer) => {
          const replies = bytes.toString('latin1')
          let at = 0
          for (let end = replies.indexOf('\r\n'); end >= 0; end = replies.indexOf('\r\n', at)) {
            onLine(replies.slice(at, end))
            at = end + 2
            if (--missing === 0 || this.#failure !== undefined) break
          }
          if (at > 0) this.#oldestSince = performance.now()
          handler.complete = missing === 0
          return bytes.subarray(at)
        },
      }
      client.handlers.push([handler, callback])
      client.stream?.write(text)
    })
  }

  /** Sends a command that is answered with a YAML dictionary; the word itself when the reply is another. */
  async askStats(
    send: (client: FiveBeansClient, callback: Callback) => void,
    limitMs?: number,
  ): Promise<Dictionary | string> {
    const reply = await this.ask((client, callback) => {
      send(client, callback)
      const handler = client.handlers.at(-1)?.[0]
      if (handler !== undefined && 'RESPONSES_REQUIRING_BODY' in handler)
        handler.RESPONSES_REQUIRING_BODY = { OK: 'passthrough' }
    }, limitMs)
    return reply.ok ? readDictionary(reply.args[0]) : reply.word
  }

  /** The error for a reply that is neither the expected one nor foreseen by the caller. */
  refuse(verb: string, word: string): QueueError {
    switch (word) {
      case 'DRAINING':
        return new QueueError(
          'refused',
          `beanstalkd at ${this.address} drains: it takes no more jobs until it is restarted`,
        )
      case 'OUT_OF_MEMORY':
        return new QueueError('refused', `beanstalkd at ${this.address} is out of memory`)
      case 'BURIED':
        return new QueueError('refused', `beanstalkd at ${this.address} is out of memory and buried the job`)
      case 'INTERNAL_ERROR':
        return new QueueError('protocol', `beanstalkd at ${this.address} answered ${word} to ${verb}`)
      default:
        // BAD_FORMAT to a put, for one, makes a command of the body: no later reply on this connection can be trusted.
        this.fail('protocol', `beanstalkd at ${this.address} answered ${describe(word)} to ${verb}`)
        return new QueueError('protocol', `beanstalkd at ${this.address} answered ${describe(word)} to ${verb}`)
    }
  }

  /** Ends the connection and rejects whatever waits on it. Only the first call counts. */
  fail(code: QueueErrorCode, message: string, cause?: unknown): void {
    if (this.#failure !== undefined) return
    this.#failure = { code, message, cause }
    this.#tellClosed()
    clearInterval(this.#clock)
    this.#client.stream?.destroy()
    const waiting = [...this.#pending]
    this.#pending.clear()
    for (const command of waiting) command.reject(this.#makeError(this.#failure))
  }

  #lose(reason: string, cause?: unknown): void {
    this.fail('connection_lost', `the connection to beanstalkd at ${this.address} was lost (${reason})`, cause)
  }

  #makeError({ code, message, cause }: { code: QueueErrorCode; message: string; cause: unknown }): QueueError {
    return new QueueError(code, message, cause)
  }

  #gatherReplies(): void {
    const { stream } = this.#client
    const [take] = (stream?.listeners('data') ?? []) as ((bytes: Buffer) => void)[]
    if (stream === null || take === undefined) return
    let pieces: Buffer[] = []
    let missing = 0
    stream.off('data', take).on('data', (bytes: Buffer) => {
      pieces.push(bytes)
      missing -= bytes.length
      if (missing > 0) return
      take(pieces.length === 1 ? bytes : Buffer.concat(pieces))
      pieces = []
      missing = countMissing(this.#client.buffer)
    })
  }

  #guardReplies(): void {
    const client = this.#client
    const handle = client.tryHandlingResponse
    client.tryHandlingResponse = () => {
      if (this.#failure !== undefined) return
      const isAsked = client.handlers.length > 0
      try {
        handle.call(client)
        // What is left over would be taken for the reply to the next command.
        if (!isAsked || (client.handlers.length === 0 && client.buffer?.length)) {
          this.fail('protocol', `${this.address} spoke without being asked`)
        }
      } catch (cause) {
        this.fail('protocol', `the reply from ${this.address} cannot be read`, cause)
      }
    }
  }

  /**
   * A command is overdue only when it is found so twice: after our own process was stopped or busy for long, the first
   * look comes before the replies that wait in the socket are read.
   */
  #checkOldest(): void {
    const [oldest] = this.#pending
    if (oldest === undefined) {
      clearInterval(this.#clock)
      this.#clock = undefined
    } else if (performance.now() - this.#oldestSince >= oldest.limitMs) {
      if (this.#overdue === oldest) this.#lose(`no answer within ${oldest.limitMs / 1000} s`)
      this.#overdue = oldest
    }
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

function describeCause(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException
  switch (code) {
    case 'ECONNREFUSED':
      return 'connection refused'
    case 'ECONNRESET':
    case 'EPIPE':
      return 'connection reset'
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return 'host not found'
    case 'ETIMEDOUT':
      return 'timed out'
    default:
      return code ?? message ?? 'unknown error'
  }
}
