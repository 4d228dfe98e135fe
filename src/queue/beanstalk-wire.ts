/**
 * One connection to a beanstalkd: questions go out, and each is told its reply, or that the connection failed.
 *
 * What whoever asks may rely on:
 * - Every question is settled: by its reply, or by the end of the connection.
 * - None waits for ever. Replies come in the order of the questions, so one clock watches the oldest only.
 * - What was asked in one turn goes out in one write: with many under way, and when a deletion and the next `reserve`
 *   come together.
 * - A peer that says what nobody asked for, or what is no reply, is believed nothing more: the connection ends.
 */

import { connect, type Socket } from 'node:net'
import { describe } from '../job/package.ts'
import { ReplyReader } from './beanstalk-reply.ts'
import { QueueError, type QueueErrorCode } from './queue.ts'

/** What comes at once; a longer body is gathered. */
const READ_BYTES = 64 * 1024
const KEEP_ALIVE_MS = 60_000

/** How a question is answered. */
export interface Expected {
  /** 1 if absent */
  readonly replies?: number
  /** 0 if absent */
  readonly maxBodyBytes?: number
  /** `replyMs` of the connection if absent */
  readonly limitMs?: number
}

/** Called for each reply, which is there until it returns. */
export type OnReply = (reply: ReplyReader) => void

interface Question {
  readonly onReply: OnReply
  readonly onFailure: (error: QueueError) => void
  readonly maxBodyBytes: number
  readonly limitMs: number
  /** replies that have not come yet */
  missing: number
  next: Question | undefined
}

const ONE_LINE: Expected = {}

export class Wire {
  readonly address: string
  readonly replyMs: number
  readonly closed: Promise<void>
  readonly #socket: Socket
  readonly #reader = new ReplyReader()
  /** a chain from the oldest that is not answered to the newest */
  #oldest: Question | undefined
  #newest: Question | undefined
  /** those of them that have gone out */
  #sent = 0
  #unsent = 0
  /** what goes out with the next write: texts that came together are one, a body in bytes stands for itself */
  #text = ''
  #parts: (string | Buffer)[] = []
  #isReading = false
  /** what the reply at hand answers */
  #answered: Question | undefined
  #isFlushComing = false
  /** when the oldest question became the oldest */
  #oldestSince = 0
  #clock: NodeJS.Timeout | undefined
  #overdue: Question | undefined
  #isConnecting = true
  #tellConnected: (error?: QueueError) => void = () => undefined
  #tellClosed: () => void = () => undefined
  #failure: { code: QueueErrorCode; message: string; cause: unknown } | undefined

  /** Begins to connect; `connected` tells how that ends. @param name of the host, for messages */
  constructor(name: string, host: string, port: number, replyMs: number) {
    this.address = name.includes(':') ? `[${name}]:${port}` : `${name}:${port}`
    this.replyMs = replyMs
    this.closed = new Promise((resolve) => {
      this.#tellClosed = resolve
    })
    const buffer = Buffer.allocUnsafeSlow(READ_BYTES)
    this.#socket = connect({
      ...{ host, port, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_MS },
      // One buffer for all that comes: the stream would make one for each piece.
      onread: { buffer, callback: (length) => this.#read(buffer, length) },
    })
    this.#socket
      .on('error', (error) => this.#onError(error))
      .on('end', () => this.#lose('the broker closed it'))
      .on('close', () => this.#lose('the broker closed it'))
  }

  /** @throws QueueError `unreachable` */
  connected(limitMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#giveUp(`no answer within ${limitMs / 1000} s`), limitMs)
      this.#tellConnected = (error) => {
        clearTimeout(timer)
        if (error === undefined) resolve()
        else reject(error)
      }
      this.#socket.once('connect', () => {
        this.#isConnecting = false
        if (this.#failure === undefined) this.#tellConnected()
      })
    })
  }

  #onError(error: Error): void {
    if (this.#isConnecting) this.#giveUp(describeCause(error), error)
    else this.#lose(describeCause(error), error)
  }

  #giveUp(reason: string, cause?: unknown): void {
    this.fail('unreachable', reason)
    this.#tellConnected(
      new QueueError('unreachable', `cannot connect to beanstalkd at ${this.address} (${reason})`, cause),
    )
  }

  /**
   * Sends one command, or several of the same kind.
   * @param command with its end; bytes are not copied
   * @param onFailure called when the connection fails, and only then; another reply than the expected one is a reply
   */
  ask(
    command: string | Buffer,
    onReply: OnReply,
    onFailure: (error: QueueError) => void,
    { replies = 1, maxBodyBytes = 0, limitMs = this.replyMs }: Expected = ONE_LINE,
  ): void {
    if (this.#failure !== undefined) {
      onFailure(this.#makeError(this.#failure))
      return
    }
    const question: Question = { onReply, onFailure, maxBodyBytes, limitMs, missing: replies, next: undefined }
    if (this.#newest === undefined) {
      this.#oldest = question
      // After a reply the moment is noted when all that came is read.
      if (!this.#isReading) this.#oldestSince = performance.now()
    } else this.#newest.next = question
    this.#newest = question
    this.#clock ??= setInterval(() => this.#checkOldest(), Math.min(1000, this.replyMs / 4, limitMs / 4)).unref()
    this.#unsent++
    if (typeof command === 'string') this.#text += command
    else {
      if (this.#text !== '') this.#parts.push(this.#text)
      this.#text = ''
      this.#parts.push(command)
    }
    if (this.#isFlushComing || this.#isReading) return
    this.#isFlushComing = true
    process.nextTick(this.#flush)
  }

  readonly #flush = (): void => {
    this.#isFlushComing = false
    if (this.#failure !== undefined || this.#unsent === 0) return
    this.#sent += this.#unsent
    this.#unsent = 0
    const socket = this.#socket
    const parts = this.#parts
    if (parts.length === 0) socket.write(this.#text)
    else {
      this.#parts = []
      socket.cork()
      for (const part of parts) socket.write(part)
      if (this.#text !== '') socket.write(this.#text)
      socket.uncork()
    }
    this.#text = ''
  }

  /** @returns true: the socket is to read on */
  #read(bytes: Buffer, length: number): boolean {
    this.#isReading = true
    try {
      this.#reader.add(bytes, length)
      if (this.#readReplies()) this.#oldestSince = performance.now()
    } catch (cause) {
      const message = `the reply from ${this.address} cannot be read`
      this.fail('protocol', message, cause)
      this.#answered?.onFailure(new QueueError('protocol', message, cause))
    }
    this.#answered = undefined
    this.#isReading = false
    if (!this.#isFlushComing) this.#flush()
    return true
  }

  /** @returns whether one was whole */
  #readReplies(): boolean {
    const reader = this.#reader
    let isAny = false
    while (reader.hasMore && this.#failure === undefined) {
      const question = this.#oldest
      // Also when the question has not gone out yet: what is here already is no reply to it.
      if (question === undefined || this.#sent === 0) {
        this.fail('protocol', `${this.address} spoke without being asked`)
        break
      }
      if (!reader.next(question.maxBodyBytes)) break
      isAny = true
      if (--question.missing === 0) this.#dropOldest(question)
      this.#answered = question
      question.onReply(reader)
      this.#answered = undefined
    }
    return isAny
  }

  #dropOldest(oldest: Question): void {
    this.#sent--
    this.#oldest = oldest.next
    if (this.#oldest === undefined) this.#newest = undefined
  }

  /** The error for a reply that is neither the expected one nor foreseen by whoever asked. */
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

  /** Ends the connection and settles whatever waits on it. Only the first call counts. */
  fail(code: QueueErrorCode, message: string, cause?: unknown): void {
    if (this.#failure !== undefined) return
    this.#failure = { code, message, cause }
    this.#tellClosed()
    clearInterval(this.#clock)
    this.#socket.destroy()
    let question = this.#oldest
    this.#oldest = undefined
    this.#newest = undefined
    for (; question !== undefined; question = question.next) question.onFailure(this.#makeError(this.#failure))
  }

  #lose(reason: string, cause?: unknown): void {
    this.fail('connection_lost', `the connection to beanstalkd at ${this.address} was lost (${reason})`, cause)
  }

  #makeError({ code, message, cause }: { code: QueueErrorCode; message: string; cause: unknown }): QueueError {
    return new QueueError(code, message, cause)
  }

  /**
   * A question is overdue only when it is found so twice: after our own process was stopped or busy for long, the first
   * look comes before the replies that wait in the socket are read.
   */
  #checkOldest(): void {
    const oldest = this.#oldest
    if (oldest === undefined) {
      clearInterval(this.#clock)
      this.#clock = undefined
    } else if (performance.now() - this.#oldestSince >= oldest.limitMs) {
      if (this.#overdue === oldest) this.#lose(`no answer within ${oldest.limitMs / 1000} s`)
      this.#overdue = oldest
    } else this.#overdue = undefined
  }
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
