/** Submission of jobs: one, or many from lines of text with an exact account of what the broker took. */

import { encodePackage, type Header, PackageError, parsePackage, type WorkPackage } from './job/package.ts'
import { type PutOptions, type PutQueue, QueueError, type Ticket } from './queue/queue.ts'

/** Puts under way at once in a batch: beanstalkd is at its limit then (FACTS: 88,000/s against 17,000/s with one). */
const WINDOW = 256
/** Bytes under way at once in a batch, so that large packages do not fill the memory. */
const WINDOW_BYTES = 8 * 2 ** 20
/** Longest line of a batch in bytes. */
export const MAX_LINE_BYTES = 16 * 2 ** 20

/** What a producer adds to the header of a job. */
export interface HeaderDefaults {
  readonly type?: string | undefined
  readonly maxAttempts?: number | undefined
  readonly tags?: Readonly<Record<string, string>> | undefined
}

export interface JobRequest extends HeaderDefaults {
  readonly type: string
  /** JSON text; it is sent as it is */
  readonly payloadJson: string
  /** a new one when absent */
  readonly uuid?: string | undefined
}

/** Makes a work package; `encodePackage` checks it. */
export function makePackage(request: JobRequest): WorkPackage {
  const { type, payloadJson, uuid = makeUuid(), maxAttempts, tags } = request
  const header: Header = {
    uuid,
    type,
    ...(maxAttempts === undefined ? {} : { max_attempts: maxAttempts }),
    ...(tags === undefined ? {} : { tags }),
  }
  return { header, payloadJson }
}

function makeUuid(): string {
  // An import would load all of it, with Web Crypto: for one job that is half as long as the talk with the broker.
  const { randomUUID } = process.getBuiltinModule('node:crypto')
  return randomUUID().replaceAll('-', '')
}

/**
 * The JSON text of a payload. A text that begins with `{` or `[` must be JSON and is taken as it is, to the last digit;
 * any other text is wrapped as `{"payload": text}`.
 * @throws PackageError `not_json`
 */
export function payloadFromText(text: string): string {
  const trimmed = text.trim()
  if (!/^[{[]/.test(trimmed)) return JSON.stringify({ payload: text })
  try {
    JSON.parse(trimmed)
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.replaceAll(/\s+/g, ' ') : String(cause)
    throw new PackageError(
      'not_json',
      `the payload begins like JSON and is none (${reason}): correct it, or to send it as text write {"payload": "..."}`,
      { cause },
    )
  }
  return trimmed
}

export interface Submission {
  readonly ticket: Ticket
  /** of the work package on the wire */
  readonly bytes: number
}

/**
 * Puts one job.
 * @throws PackageError for a package that workers would refuse
 * @throws QueueError `too_big` before anything is sent
 */
export async function submit(queue: PutQueue, workPackage: WorkPackage, options: PutOptions): Promise<Submission> {
  const body = encodePackage(workPackage)
  checkSize(body.length, queue)
  const ticket = await queue.put(body, { ...options, key: workPackage.header.uuid })
  return { ticket, bytes: body.length }
}

function checkSize(bytes: number, queue: PutQueue): void {
  if (bytes <= queue.maxBodyBytes) return
  throw new QueueError(
    'too_big',
    `the work package has ${bytes} bytes and the broker takes at most ${queue.maxBodyBytes}: start beanstalkd with -z ${bytes}, or put the data on a URL and send that`,
  )
}

/**
 * Lines of UTF-8 text without their ends (LF or CRLF), empty ones too. A byte order mark at the start is dropped. Holds
 * one line and one chunk.
 * @throws PackageError `not_utf8`, QueueError `too_big` for a line over `maxBytes`
 */
export async function* splitLines(
  chunks: AsyncIterable<Uint8Array>,
  maxBytes: number = MAX_LINE_BYTES,
): AsyncGenerator<string> {
  let parts: Buffer[] = []
  let held = 0
  let first = true
  const take = (last: Buffer) => {
    if (held + last.length > maxBytes) throw lineTooLong(maxBytes)
    const line = decodeLine(parts.length === 0 ? last : Buffer.concat([...parts, last]))
    parts = []
    held = 0
    if (!first) return line
    first = false
    return line.replace(/^\ufeff/, '')
  }
  for await (const bytes of chunks) {
    const chunk = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    let start = 0
    for (let end = chunk.indexOf(0x0a); end >= 0; end = chunk.indexOf(0x0a, start)) {
      yield take(chunk.subarray(start, end))
      start = end + 1
    }
    if (start === chunk.length) continue
    parts.push(chunk.subarray(start))
    held += chunk.length - start
    if (held > maxBytes) throw lineTooLong(maxBytes)
  }
  if (held > 0) yield take(Buffer.alloc(0))
}

function lineTooLong(maxBytes: number): QueueError {
  return new QueueError('too_big', `the line is longer than ${maxBytes} bytes: put the data on a URL and send that`)
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function decodeLine(bytes: Buffer): string {
  try {
    return UTF8.decode(bytes).replace(/\r$/, '')
  } catch (cause) {
    throw new PackageError('not_utf8', `the line (${bytes.length} bytes) is not UTF-8 text`, { cause })
  }
}

export interface LinePackage {
  readonly header: Header
  readonly bytes: Buffer
}

/**
 * The work package of one line. A JSON array of two is a package when its first element is an object that is empty or
 * has a key of a header; what its header lacks comes from `defaults`, and its uuid is made. Anything else is a payload,
 * so that a series of two points is no package by accident.
 * @throws PackageError
 */
export function packageFromLine(line: string, defaults: HeaderDefaults): LinePackage {
  const given = readHeader(line)
  if (given === undefined) {
    const { type } = defaults
    if (type === undefined) {
      throw new PackageError(
        'bad_type',
        'the line is a payload and no type is given: give one (-a TYPE), or write the line as [{"type": "..."}, payload]',
      )
    }
    const made = makePackage({ ...defaults, type, payloadJson: payloadFromText(line) })
    return { header: made.header, bytes: encodePackage(made) }
  }
  const { header } = makePackage({ ...defaults, type: defaults.type ?? '', payloadJson: '' })
  const missing = Object.entries(header).filter(([key, value]) => !Object.hasOwn(given, key) && value !== '')
  // What is missing is written into the text, before the first key: the rest of the line stays as it was sent.
  const added = missing.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(',')
  const comma = added !== '' && Object.keys(given).length > 0 ? ',' : ''
  const bytes = Buffer.from(line.trim().replace('{', () => `{${added}${comma}`))
  return { header: parsePackage(bytes).header, bytes }
}

const HEADER_KEYS = ['uuid', 'type', 'max_attempts', 'tags']

function readHeader(line: string): object | undefined {
  if (!/^\s*\[\s*\{/.test(line)) return undefined
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    // payloadFromText tells what is wrong with it.
    return undefined
  }
  if (!Array.isArray(value) || value.length !== 2) return undefined
  const first: unknown = value[0]
  if (typeof first !== 'object' || first === null || Array.isArray(first)) return undefined
  const keys = Object.keys(first)
  return keys.length === 0 || keys.some((key) => HEADER_KEYS.includes(key)) ? first : undefined
}

/** One job of a batch that the broker took. */
export interface AcceptedJob extends Submission {
  /** 1 for the first */
  readonly line: number
  readonly uuid: string
  readonly type: string
}

export interface BatchOptions {
  readonly put: PutOptions
  readonly defaults: HeaderDefaults
  /** stops the batch; what is under way is waited for */
  readonly signal?: AbortSignal
  /** called in the order of the lines */
  readonly onAccepted?: (job: AcceptedJob) => void
}

export type BatchFailureKind =
  /** the line is no job, or too big */
  | 'line'
  /** the broker refused, or was lost */
  | 'broker'
  /** the lines cannot be read */
  | 'input'
  | 'interrupted'

/** What became of a batch. Every line that was read is in exactly one of: accepted, empty, refused, unanswered, failed. */
export interface BatchAccount {
  /** jobs for which the broker gave a ticket */
  readonly accepted: number
  /** lines of the first and the last accepted job */
  readonly firstLine: number | undefined
  readonly lastLine: number | undefined
  /** why the batch ended before its last line */
  readonly failed: { readonly line: number; readonly kind: BatchFailureKind; readonly message: string } | undefined
  /**
   * Sent and not answered: these may or may not be in the queue. Where several servers were lost, but for `accepted`,
   * which one of them had answered before.
   */
  readonly unanswered:
    | { readonly fromLine: number; readonly toLine: number; readonly accepted: readonly number[] }
    | undefined
  /** refused by the broker although lines after them were accepted; below `nextLine` */
  readonly refusedLines: readonly number[]
  /** where to go on */
  readonly nextLine: number
}

/** Submits a job for each line, in order, many at once. Stops at the first that fails; it throws nothing. */
export async function submitBatch(
  queue: PutQueue,
  lines: AsyncIterable<string>,
  options: BatchOptions,
): Promise<BatchAccount> {
  const batch = new Batch(queue, options)
  const iterator = lines[Symbol.asyncIterator]()
  const stop = () => batch.fail(batch.line + 1, 'interrupted', 'the batch was interrupted')
  options.signal?.addEventListener('abort', stop, { once: true })
  if (options.signal?.aborted) stop()
  try {
    while (!batch.stopped) {
      const next = await batch.unlessStopped(iterator.next())
      if (next === undefined || next.done) break
      await batch.take(next.value)
    }
  } catch (error) {
    const kind = error instanceof PackageError || error instanceof QueueError ? 'line' : 'input'
    batch.fail(batch.line + 1, kind, error instanceof Error ? error.message : String(error))
  }
  // Not awaited: a source that waits for its own input ends only when that comes.
  void iterator.return?.().then(undefined, () => undefined)
  await batch.settled()
  options.signal?.removeEventListener('abort', stop)
  return batch.account()
}

class Batch {
  /** lines taken so far */
  line = 0
  readonly #queue: PutQueue
  readonly #options: BatchOptions
  readonly #underWay = new Set<number>()
  #bytesUnderWay = 0
  #accepted: number[] = []
  #acceptedCount = 0
  #refused: number[] = []
  #unanswered: number[] = []
  #acceptedAfterLoss: number[] = []
  #failed: BatchAccount['failed']
  #wake: (() => void) | undefined

  constructor(queue: PutQueue, options: BatchOptions) {
    this.#queue = queue
    this.#options = options
  }

  get stopped(): boolean {
    return this.#failed !== undefined
  }

  /** The earliest line that failed is the one that counts: a put may be refused after a later line was found bad. */
  fail(line: number, kind: BatchFailureKind, message: string): void {
    if (this.#failed === undefined || line < this.#failed.line) this.#failed = { line, kind, message }
    this.#wake?.()
  }

  /** The value, or undefined when the batch is stopped before it comes. One waiter at a time. */
  unlessStopped<T>(promise: Promise<T>): Promise<T | undefined> {
    return new Promise((resolve, reject) => {
      this.#wake = () => {
        if (this.stopped) resolve(undefined)
      }
      promise.then(resolve, reject)
    })
  }

  async take(text: string): Promise<void> {
    if (text.trim() === '') {
      this.line++
      return
    }
    let made: LinePackage
    try {
      made = packageFromLine(text, this.#options.defaults)
      checkSize(made.bytes.length, this.#queue)
    } catch (error) {
      if (!(error instanceof PackageError || error instanceof QueueError)) throw error
      return this.fail(this.line + 1, 'line', error.message)
    }
    await this.#waitUntil(() => this.#underWay.size < WINDOW && this.#bytesUnderWay < WINDOW_BYTES)
    if (!this.stopped) this.#send(++this.line, made)
  }

  settled(): Promise<void> {
    return this.#waitUntil(() => this.#underWay.size === 0)
  }

  async #waitUntil(holds: () => boolean): Promise<void> {
    while (!holds()) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  #send(line: number, { header, bytes }: LinePackage): void {
    const { uuid, type } = header
    this.#underWay.add(line)
    this.#bytesUnderWay += bytes.length
    const done = () => {
      this.#underWay.delete(line)
      this.#bytesUnderWay -= bytes.length
      this.#wake?.()
    }
    this.#queue.put(bytes, { ...this.#options.put, key: uuid }).then(
      (ticket) => {
        this.#acceptedCount++
        if (this.#accepted.length > 1) this.#accepted.pop()
        this.#accepted.push(line)
        if (this.#unanswered.length > 0) this.#acceptedAfterLoss.push(line)
        done()
        this.#options.onAccepted?.({ line, uuid, type, ticket, bytes: bytes.length })
      },
      (error: unknown) => {
        const isAnswer = error instanceof QueueError && (error.code === 'refused' || error.code === 'too_big')
        ;(isAnswer ? this.#refused : this.#unanswered).push(line)
        this.fail(line, 'broker', error instanceof Error ? error.message : String(error))
        done()
      },
    )
  }

  account(): BatchAccount {
    const firstLine = this.#accepted[0]
    const lastLine = this.#accepted.at(-1)
    const [fromLine, toLine] = [this.#unanswered[0], this.#unanswered.at(-1)]
    const unanswered =
      fromLine === undefined || toLine === undefined
        ? undefined
        : { fromLine, toLine, accepted: this.#acceptedAfterLoss.filter((line) => line < toLine) }
    const behindSent = Math.max(lastLine ?? 0, toLine ?? 0) + 1
    const nextLine = this.#failed === undefined ? this.line + 1 : Math.max(this.#failed.line, behindSent)
    return {
      accepted: this.#acceptedCount,
      firstLine,
      lastLine,
      failed: this.#failed,
      unanswered,
      refusedLines: this.#refused.filter((line) => line < nextLine),
      nextLine,
    }
  }
}
