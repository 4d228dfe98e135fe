/**
 * A feed: a batch that keeps so many jobs waiting in its tube and no more, and that goes on where it stopped, however it
 * was stopped.
 *
 * The place where it goes on is in its state file, written behind the answers of the broker. So after a crash some lines
 * that were accepted are put again, never one left out: at most two grants and what a batch has under way, below 10,000.
 * They have the same uuids as before, by the seed in the state file, and a job whose uuid has a result is not run again.
 */

import { createHash, randomBytes } from 'node:crypto'
import { basename, dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { takeLock } from '../broker/lock.ts'
import type { BatchAccount, Position } from './batch.ts'
import { FeedError, type FeedState, fits, makeFingerprint, PRINT_BYTES, readState, writeState } from './state.ts'
import { makeUuidSeries, SEED_BYTES } from './uuids.ts'

/** Jobs between two notes. */
const GRANT = 4096
/** Between two questions how many jobs wait. */
const PAUSE_MS = { first: 50, least: 20, most: 1000 } as const
/** Of a lock: see takeLock. */
const MAX_NAME_BYTES = 60

export interface FeedInput {
  /** @param offset 0, where `canSeek` is false */
  readFrom(offset: number): AsyncIterable<Uint8Array>
  readonly canSeek: boolean
}

export interface FeedOptions {
  readonly statePath: string
  /** all lines are put again, with new uuids */
  readonly isAnew: boolean
}

/**
 * Finds the place where the feed goes on, and has the state file for itself until it is closed.
 * @throws FeedError
 */
export async function openFeed(input: FeedInput, { statePath, isAnew }: FeedOptions): Promise<Feed> {
  const unlock = await lockState(statePath)
  try {
    const old = await readState(statePath)
    const state = old === undefined || isAnew ? makeState() : old
    const place = await goTo(input, state, statePath)
    // The seed must be on disk before the first job has a uuid of it; and what cannot be written is told at once.
    await writeState(statePath, state)
    return new Feed(statePath, state, place, unlock)
  } catch (error) {
    await unlock()
    throw error
  }
}

async function lockState(path: string): Promise<() => Promise<void>> {
  const name = `${basename(path)}.lock`
  const short = `.feed-${createHash('sha256').update(name).digest('hex').slice(0, 16)}.lock`
  let unlock: (() => Promise<void>) | undefined
  try {
    unlock = await takeLock(dirname(path), Buffer.byteLength(name) > MAX_NAME_BYTES ? short : name)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    throw new FeedError(
      'unwritable',
      `the folder of the state file ${path} cannot be used (${code}): name one with --state that this user may write to`,
      cause,
    )
  }
  if (unlock !== undefined) return unlock
  throw new FeedError('busy', `another feed has the state file ${path} now: let it go on, or stop it first`)
}

function makeState(): FeedState {
  const nothing = makeFingerprint(Buffer.alloc(0))
  const position = { line: 0, offset: 0 }
  return { seed: randomBytes(SEED_BYTES), position, accepted: 0, isFinished: false, head: nothing, tail: nothing }
}

/** The place in the input where a feed goes on. */
interface Place {
  readonly trail: Trail
  /** the input from there on */
  readonly rest: AsyncIterable<Buffer>
  readonly isEnd: boolean
}

/** @throws FeedError `changed` */
async function goTo(input: FeedInput, { position, head, tail }: FeedState, statePath: string): Promise<Place> {
  const { offset } = position
  const changed = (what: string) =>
    new FeedError(
      'changed',
      `the input is not the one of the state file ${statePath} (${what}): give it the same input again, or another file with --state; --anew puts all lines again, with new uuids`,
    )
  const isFar = input.canSeek && offset - tail.bytes >= PRINT_BYTES
  const trail = isFar ? new Trail(offset - tail.bytes, await readHead(input)) : new Trail(0, Buffer.alloc(0))
  const chunks = input.readFrom(isFar ? offset - tail.bytes : 0)[Symbol.asyncIterator]()
  let next: Buffer = Buffer.alloc(0)
  while (trail.end < offset) {
    const { done, value } = await chunks.next()
    if (done) throw changed(`it has ${trail.end} bytes; ${offset} were read`)
    next = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
    const missing = offset - trail.end
    trail.push(next.subarray(0, missing))
    next = next.subarray(missing)
    trail.before(trail.end)
  }
  if (!fits(head, trail.head.subarray(0, head.bytes))) throw changed('it begins otherwise')
  if (!fits(tail, trail.before(offset)))
    throw changed(`it is otherwise before byte ${offset}, where line ${position.line} ended`)
  let isEnd = false
  if (next.length === 0 && offset > 0) {
    const { done, value } = await chunks.next()
    isEnd = done === true
    if (!done) next = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
  }
  if (!isEnd && offset > 0 && trail.before(offset).at(-1) !== 0x0a) {
    throw changed(`line ${position.line}, which was the last one and accepted, goes on now`)
  }
  return { trail, rest: readRest(next, chunks, trail), isEnd }
}

async function readHead(input: FeedInput): Promise<Buffer> {
  const head = new Trail(0, Buffer.alloc(0))
  for await (const chunk of input.readFrom(0)) {
    head.push(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength))
    if (head.end >= PRINT_BYTES) break
  }
  return head.head
}

async function* readRest(first: Buffer, chunks: AsyncIterator<Uint8Array>, trail: Trail): AsyncGenerator<Buffer> {
  try {
    for (let chunk = first; ; ) {
      trail.push(chunk)
      if (chunk.length > 0) yield chunk
      const { done, value } = await chunks.next()
      if (done) return
      chunk = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
    }
  } finally {
    // Not awaited: a source that waits for its own input ends only when that comes.
    void chunks.return?.().then(undefined, () => undefined)
  }
}

/** The beginning of what was read, and as much of its end as may still be asked for. */
class Trail {
  /** bytes of the input up to here */
  end: number
  head: Buffer
  #chunks: Buffer[] = []
  #start: number

  constructor(start: number, head: Buffer) {
    this.end = start
    this.#start = start
    this.head = head
  }

  push(chunk: Buffer): void {
    if (this.head.length < PRINT_BYTES) {
      this.head = Buffer.concat([this.head, chunk.subarray(0, PRINT_BYTES - this.head.length)])
    }
    this.#chunks.push(chunk)
    this.end += chunk.length
  }

  /** What is before the offset, so much as is compared. No smaller offset can be asked for afterwards. */
  before(offset: number): Buffer {
    const from = Math.max(0, offset - PRINT_BYTES)
    for (let [first] = this.#chunks; first && this.#start + first.length <= from; [first] = this.#chunks) {
      this.#chunks.shift()
      this.#start += first.length
    }
    const parts: Buffer[] = []
    let at = this.#start
    for (const chunk of this.#chunks) {
      if (at >= offset) break
      parts.push(chunk.subarray(Math.max(0, from - at), offset - at))
      at += chunk.length
    }
    return Buffer.concat(parts)
  }
}

export class Feed {
  readonly statePath: string
  /** where it goes on */
  readonly start: Position
  /** a feed that was finished before, and nothing came behind it */
  readonly isDone: boolean
  readonly makeUuid: (line: number) => string
  readonly #place: Place
  readonly #unlock: () => Promise<void>
  #state: FeedState
  /** what is to be noted */
  #position: Position
  #accepted: number
  #tail: Buffer
  #noting: Promise<void> = Promise.resolve()
  #fault: unknown
  #isClosed = false
  /** jobs that may be put before the tube is asked again */
  #room = 0
  /** when the tube was asked, and how many wait in it since then unless some are taken */
  #asked: { readonly ms: number; readonly expected: number } | undefined

  constructor(statePath: string, state: FeedState, place: Place, unlock: () => Promise<void>) {
    this.statePath = statePath
    this.start = state.position
    this.isDone = state.isFinished && place.isEnd
    this.makeUuid = makeUuidSeries(state.seed)
    this.#place = place
    this.#unlock = unlock
    this.#state = state
    this.#position = state.position
    this.#accepted = state.accepted
    this.#tail = place.trail.before(state.position.offset)
  }

  /** jobs that were accepted, in all runs */
  get accepted(): number {
    return this.#accepted
  }

  get position(): Position {
    return this.#position
  }

  /** The input from the start on; once. */
  get chunks(): AsyncIterable<Buffer> {
    return this.#place.rest
  }

  /** For `onAccepted` of a batch. */
  advance(jobs: readonly { readonly line: number }[], reached: Position | undefined): void {
    if (reached === undefined || reached.line <= this.#position.line) return
    // What was accepted behind a line that was refused is put again.
    this.#accepted += jobs.filter(({ line }) => line <= reached.line).length
    this.#moveTo(reached)
  }

  #moveTo(position: Position): void {
    this.#position = position
    this.#tail = this.#place.trail.before(position.offset)
  }

  /**
   * For `makeRoom` of a batch: waits until not more than half of `maxWaiting` jobs wait, then lets the batch fill it up.
   * @param countWaiting asks the tube; after all that was put before
   * @throws FeedError `unwritable`; what `countWaiting` throws
   */
  async makeRoom(maxWaiting: number, countWaiting: () => Promise<number>): Promise<number> {
    await this.#note()
    if (this.#room === 0) this.#room = await this.#awaitRoom(maxWaiting, countWaiting)
    const room = Math.min(this.#room, GRANT)
    this.#room -= room
    return room
  }

  async #awaitRoom(maxWaiting: number, countWaiting: () => Promise<number>): Promise<number> {
    if (maxWaiting === Number.POSITIVE_INFINITY) return GRANT
    const enough = this.#asked === undefined ? 1 : Math.ceil(maxWaiting / 2)
    let pauseMs: number = PAUSE_MS.first
    while (!this.#isClosed) {
      const waiting = await countWaiting()
      const room = maxWaiting - waiting
      const ms = performance.now()
      const perMs = this.#asked && (this.#asked.expected - waiting) / (ms - this.#asked.ms)
      this.#asked = { ms, expected: room >= enough ? maxWaiting : waiting }
      if (room >= enough) return room
      // It may be long: all that was accepted is noted meanwhile.
      await this.#note()
      const expectedMs = perMs !== undefined && perMs > 0 ? (enough - room) / perMs : pauseMs * 2
      pauseMs = Math.min(Math.max(expectedMs, PAUSE_MS.least), PAUSE_MS.most)
      await sleep(pauseMs)
    }
    return 0
  }

  /** Begins to write when the last note is written. @throws FeedError when that could not be */
  async #note(isFinished = false): Promise<void> {
    await this.#noting
    if (this.#fault !== undefined) throw this.#fault
    if (this.#position.offset === this.#state.position.offset && isFinished === this.#state.isFinished) return
    this.#state = {
      seed: this.#state.seed,
      position: this.#position,
      accepted: this.#accepted,
      isFinished,
      head: makeFingerprint(this.#place.trail.head.subarray(0, this.#position.offset)),
      tail: makeFingerprint(this.#tail),
    }
    this.#noting = writeState(this.statePath, this.#state).catch((error: unknown) => {
      this.#fault = error
    })
  }

  /** Notes what became of the batch. @throws FeedError `unwritable` */
  async finish({ reached, failed }: BatchAccount): Promise<void> {
    this.#isClosed = true
    if (reached !== undefined && reached.line > this.#position.line) this.#moveTo(reached)
    await this.#note(failed === undefined)
    await this.#noting
    if (this.#fault !== undefined) throw this.#fault
  }

  async close(): Promise<void> {
    this.#isClosed = true
    await this.#noting
    await this.#unlock()
  }
}
