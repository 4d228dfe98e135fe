/** Submission of many jobs from lines of text, with an exact account of what the broker took. */

import { randomBytes } from 'node:crypto'
import { PackageError } from '../job/package.ts'
import { checkSize, type HeaderDefaults, type Submission } from '../producer.ts'
import { type PutOptions, type PutQueue, QueueError, type Ticket } from '../queue/queue.ts'
import { type LineBlock, makePackager, type Packager } from './lines.ts'
import { makeUuidSeries, SEED_BYTES } from './uuids.ts'

/** Puts under way at once. */
const WINDOW = 1024
/** Puts that are sent together. */
const PARCEL = 256
/** Bytes under way at once, so that large packages do not fill the memory. */
const WINDOW_BYTES = 8 * 2 ** 20
const PARCEL_BYTES = 64 * 2 ** 10

/** One job of a batch that the broker took. */
export interface AcceptedJob extends Submission {
  /** 1 for the first */
  readonly line: number
  readonly uuid: string
  readonly type: string
}

/** A place between two lines. */
export interface Position {
  /** lines before it */
  readonly line: number
  /** bytes before it */
  readonly offset: number
}

export interface BatchOptions {
  readonly put: PutOptions
  readonly defaults: HeaderDefaults
  /** stops the batch; what is under way is waited for */
  readonly signal?: AbortSignal
  /** of a line without a uuid of its own; random when absent */
  readonly makeUuid?: (line: number) => string
  /** number of lines before the first one that is given */
  readonly linesBefore?: number
  /** called in the order of the lines; all lines before `reached` are accepted, or empty */
  readonly onAccepted?: (jobs: readonly AcceptedJob[], reached: Position | undefined) => void
  /** Waits until jobs may be put and tells how many; asked again when they are sent. Any number when absent. */
  readonly makeRoom?: () => Promise<number>
}

export type BatchFailureKind =
  /** the line is no job, or too big */
  | 'line'
  /** the broker refused, or was lost */
  | 'broker'
  /** the lines cannot be read */
  | 'input'
  | 'interrupted'
  /** `makeRoom` failed, and not because of the broker */
  | 'state'

/** What became of a batch. Every line that was read is in exactly one of: accepted, empty, refused, unanswered, failed. */
export interface BatchAccount {
  /** jobs for which the broker gave a ticket */
  readonly accepted: number
  /** lines of the first and the last accepted job */
  readonly firstLine: number | undefined
  readonly lastLine: number | undefined
  /** why the batch ended before its last line */
  readonly failed: { readonly line: number; readonly kind: BatchFailureKind; readonly message: string } | undefined
  /** sent and not answered: these may or may not be in the queue */
  readonly unanswered:
    | {
        readonly fromLine: number
        readonly toLine: number
        /** lines in between that another server took */
        readonly accepted: readonly number[]
      }
    | undefined
  /** refused by the broker although lines after them were accepted; below `nextLine` */
  readonly refusedLines: readonly number[]
  /** where to go on */
  readonly nextLine: number
  /** all lines before it are accepted, or empty; undefined when that is where it began */
  readonly reached: Position | undefined
}

/** Submits a job for each line, in order, many at once. Stops at the first that fails; it throws nothing. */
export async function submitBatch(
  queue: PutQueue,
  blocks: AsyncIterable<LineBlock>,
  options: BatchOptions,
): Promise<BatchAccount> {
  const batch = new Batch(queue, options)
  const iterator = blocks[Symbol.asyncIterator]()
  const stop = () => batch.fail(batch.nextLine, 'interrupted', 'the batch was interrupted')
  options.signal?.addEventListener('abort', stop, { once: true })
  if (options.signal?.aborted) stop()
  try {
    while (!batch.isStopped) {
      const next = await batch.unlessStopped(iterator.next())
      if (next === undefined || next.done) break
      await batch.take(next.value)
    }
  } catch (error) {
    const kind = error instanceof PackageError || error instanceof QueueError ? 'line' : 'input'
    batch.fail(batch.nextLine, kind, error instanceof Error ? error.message : String(error))
  }
  // Not awaited: a source that waits for its own input ends only when that comes.
  void iterator.return?.().then(undefined, () => undefined)
  await batch.settled()
  options.signal?.removeEventListener('abort', stop)
  return batch.account()
}

interface PendingJob {
  readonly line: number
  readonly uuid: string
  readonly type: string
  readonly bytes: number
  /** where its line ends in the text */
  readonly end: number
}

class Batch {
  readonly #queue: PutQueue
  readonly #options: BatchOptions
  #packager: Packager | undefined
  /** lines taken so far, and where they end */
  #line: number
  #end: number | undefined
  /** made and not sent */
  #jobs: PendingJob[] = []
  #bodies: string[] = []
  #bytes = 0
  #room: number
  #underWay = 0
  #bytesUnderWay = 0
  /** all parcels that were sent have their answers */
  #answered: Promise<void> = Promise.resolve()
  #acceptedCount = 0
  #firstLine: number | undefined
  #lastLine: number | undefined
  #reached: Position | undefined
  #refused: number[] = []
  #unanswered: number[] = []
  /** accepted lines behind the first unanswered one */
  #acceptedBehind: number[] = []
  #failed: BatchAccount['failed']
  #wake: (() => void) | undefined

  constructor(queue: PutQueue, options: BatchOptions) {
    this.#queue = queue
    this.#options = options
    this.#line = options.linesBefore ?? 0
    this.#room = options.makeRoom === undefined ? Number.POSITIVE_INFINITY : 0
  }

  get isStopped(): boolean {
    return this.#failed !== undefined
  }

  /** The first line that is neither sent nor empty. */
  get nextLine(): number {
    return this.#jobs[0]?.line ?? this.#line + 1
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
        if (this.isStopped) resolve(undefined)
      }
      promise.then(resolve, reject)
    })
  }

  /** What is made of the lines is sent before it returns: the next ones may be long in coming. */
  async take({ lines, ends }: LineBlock): Promise<void> {
    for (const [i, text] of lines.entries()) {
      if (this.#room === 0) await this.#findRoom()
      if (this.isStopped) return
      const problem = this.#add(text, ends[i] ?? 0)
      const isParcel = this.#jobs.length >= PARCEL || this.#bytes >= PARCEL_BYTES || this.#room === 0
      if (isParcel || problem !== undefined) await this.#send()
      if (problem !== undefined) return this.fail(this.#line + 1, 'line', problem)
    }
    await this.#send()
  }

  /** @returns what is wrong with the line */
  #add(text: string, end: number): string | undefined {
    if (text.trim() !== '') {
      const line = this.#line + 1
      try {
        this.#packager ??= makePackager(
          this.#options.defaults,
          this.#options.makeUuid ?? makeUuidSeries(randomBytes(SEED_BYTES)),
        )
        const made = this.#packager(text, line)
        const bytes = Buffer.byteLength(made.text)
        checkSize(bytes, this.#queue)
        this.#jobs.push({ line, uuid: made.uuid, type: made.type, bytes, end })
        this.#bodies.push(made.text)
        this.#bytes += bytes
        this.#room--
      } catch (error) {
        if (error instanceof PackageError || error instanceof QueueError) return error.message
        throw error
      }
    }
    this.#line++
    this.#end = end
    return undefined
  }

  async #findRoom(): Promise<void> {
    try {
      this.#room = (await this.unlessStopped(this.#options.makeRoom?.() ?? Promise.resolve(1))) ?? 0
    } catch (error) {
      const kind = error instanceof QueueError ? 'broker' : 'state'
      this.fail(this.nextLine, kind, error instanceof Error ? error.message : String(error))
    }
  }

  async #send(): Promise<void> {
    const [jobs, bodies, bytes] = [this.#jobs, this.#bodies, this.#bytes]
    if (jobs.length === 0) return
    await this.#waitUntil(
      () =>
        this.isStopped ||
        this.#underWay === 0 ||
        (this.#underWay + jobs.length <= WINDOW && this.#bytesUnderWay + bytes <= WINDOW_BYTES),
    )
    if (this.isStopped) return
    this.#jobs = []
    this.#bodies = []
    this.#bytes = 0
    this.#underWay += jobs.length
    this.#bytesUnderWay += bytes
    const answers = this.#queue.putMany(
      bodies,
      this.#options.put,
      jobs.map(({ uuid }) => uuid),
    )
    this.#answered = this.#answered.then(async () => {
      this.#enter(jobs, await answers)
      this.#underWay -= jobs.length
      this.#bytesUnderWay -= bytes
      this.#wake?.()
    })
  }

  settled(): Promise<void> {
    return this.#answered
  }

  async #waitUntil(holds: () => boolean): Promise<void> {
    while (!holds()) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  #enter(jobs: readonly PendingJob[], answers: readonly (Ticket | QueueError)[]): void {
    const accepted: AcceptedJob[] = []
    for (const [i, { line, uuid, type, bytes, end }] of jobs.entries()) {
      const answer = answers[i] ?? new QueueError('protocol', 'the queue has no answer to a put')
      if (typeof answer === 'string') {
        accepted.push({ line, uuid, type, ticket: answer, bytes })
        if (this.#unanswered.length > 0) this.#acceptedBehind.push(line)
        if (this.#refused.length + this.#unanswered.length === 0) this.#reached = { line, offset: end }
      } else {
        ;(answer.code === 'refused' || answer.code === 'too_big' ? this.#refused : this.#unanswered).push(line)
        this.fail(line, 'broker', answer.message)
      }
    }
    if (accepted.length === 0) return
    this.#acceptedCount += accepted.length
    this.#firstLine ??= accepted[0]?.line
    this.#lastLine = accepted.at(-1)?.line
    this.#options.onAccepted?.(accepted, this.#reached)
  }

  account(): BatchAccount {
    const [firstLine, lastLine] = [this.#firstLine, this.#lastLine]
    const [fromLine, toLine] = [this.#unanswered[0], this.#unanswered.at(-1)]
    const behindSent = Math.max(lastLine ?? 0, toLine ?? 0) + 1
    const nextLine = this.#failed === undefined ? this.#line + 1 : Math.max(this.#failed.line, behindSent)
    const isWhole = this.#failed === undefined && this.#end !== undefined
    return {
      accepted: this.#acceptedCount,
      firstLine,
      lastLine,
      failed: this.#failed,
      unanswered:
        fromLine === undefined || toLine === undefined
          ? undefined
          : { fromLine, toLine, accepted: this.#acceptedBehind.filter((line) => line < toLine) },
      refusedLines: this.#refused.filter((line) => line < nextLine),
      nextLine,
      reached: isWhole ? { line: this.#line, offset: this.#end ?? 0 } : this.#reached,
    }
  }
}
