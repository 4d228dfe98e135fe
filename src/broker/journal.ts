/**
 * The broker's memory on disk: every change of a job, appended to segments in a folder, read again at the start.
 *
 * - A change is in the file before anybody is told of it: `write` comes before the answers. A killed process loses
 *   nothing that it answered; what a machine that loses its power loses is the choice of `fsync`.
 * - Records go out in frames with length and checksum, one a turn of the event loop. A frame that is not whole was not
 *   answered; what follows one is kept aside, not read.
 * - Compaction goes along with writing: when there are more segments than twice the living jobs need, the jobs whose
 *   records are oldest are written anew, and segments that no living job needs are removed from the oldest on. Only
 *   from the oldest on, as the record that deletes a job must outlive the one that puts it.
 * - A reserve of space (`ballast`) lets changes go on when the disk is full: puts are refused, deletes are not. It has
 *   room for a turn with small jobs; what a large one needs is asked of the disk first, and compaction goes without.
 */

import {
  closeSync,
  fdatasync,
  fdatasyncSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { BrokerError } from './broker-error.ts'
import { Job } from './job.ts'
import { lockFolder } from './lock.ts'
import { FORMAT, Frame, type Kept, readFrame, type StoredChange, sizeOfPut } from './record.ts'
import type { Change, Tubes } from './tubes.ts'

export interface JournalOptions {
  readonly segmentBytes: number
  readonly ballastBytes: number
  /** Removed segments need not wait for a sync. */
  readonly neverSyncs: boolean
}

/** What was found at the start. */
export interface Recovery {
  readonly jobs: number
  /** Bytes behind the last whole frame of a segment; they are kept in `<segment>.torn`. */
  readonly tornBytes: number
}

const SEGMENT = /^journal\.(\d{8})$/
const BALLAST = 'ballast'
/** Beyond this a frame goes out before the turn is over. */
const FRAME_LIMIT = 1 << 20
/** Segments that compaction leaves alone whatever they hold. */
const SPARE_SEGMENTS = 3
const MIGRATE_BYTES = 4096
const BALLAST_RETRY_MS = 1000
const TURN_MS = 20
const ZEROS = Buffer.alloc(1 << 20)

/** @throws BrokerError `locked` when another broker has the folder, `journal` when it cannot be used */
export async function openJournal(folder: string, options: JournalOptions): Promise<Journal> {
  try {
    mkdirSync(folder, { recursive: true })
  } catch (cause) {
    throw new BrokerError('journal', `the journal folder ${folder} cannot be made (${(cause as Error).message})`, cause)
  }
  return new Journal(folder, options, await lockFolder(folder))
}

export class Journal {
  readonly #folder: string
  readonly #options: JournalOptions
  readonly #unlock: () => Promise<void>
  readonly #frame = new Frame()
  /** numbers of the segments, oldest first; the last one is written to */
  #segments: number[] = []
  #descriptor = -1
  /** of the current segment: behind its last whole frame */
  #size = 0
  #oldest: Job | undefined
  #newest: Job | undefined
  #liveBytes = 0
  #ballast: 'kept' | 'spent' = 'spent'
  #ballastTriedAt = Number.NEGATIVE_INFINITY
  /** how many segments there were when the disk had no room to write jobs anew; 0: it had */
  #crampedSegments = 0
  #recordsWritten = 0
  #recordsMigrated = 0
  #isDirty = false
  #isSyncing = false
  /** descriptors of segments that are full, while a sync may still use them */
  readonly #retired: number[] = []
  /** Older segments than this have nothing that counts, by what is in the files. */
  #needed = 0
  #nextId = (): number => 1

  constructor(folder: string, options: JournalOptions, unlock: () => Promise<void>) {
    this.#folder = folder
    this.#options = options
    this.#unlock = unlock
  }

  get stats() {
    return {
      oldest: this.#segments[0] ?? 0,
      current: this.#current,
      migrated: this.#recordsMigrated,
      written: this.#recordsWritten,
      segmentBytes: this.#options.segmentBytes,
    }
  }

  /** Something was written that no sync has covered yet. */
  get isDirty(): boolean {
    return this.#isDirty
  }

  get #current(): number {
    return this.#segments.at(-1) ?? 0
  }

  /**
   * Reads all segments, gives the jobs to the tubes, and begins a segment to write to. The process has its turns
   * meanwhile; nothing may be noted. @throws BrokerError `journal`
   */
  async restore(tubes: Tubes, now: number): Promise<Recovery> {
    this.#nextId = () => tubes.nextId
    try {
      this.#segments = readdirSync(this.#folder)
        .flatMap((name) => SEGMENT.exec(name)?.[1] ?? [])
        .map(Number)
        .sort((a, b) => a - b)
      const recovery = await this.#read(tubes, now)
      this.#begin()
      this.#needed = this.#oldest?.segment ?? this.#current
      this.#removeDead(this.#needed)
      this.#keepBallast()
      return recovery
    } catch (cause) {
      if (cause instanceof BrokerError) throw cause
      const reason = (cause as Error).message
      throw new BrokerError('journal', `the journal in ${this.#folder} cannot be used (${reason})`, cause)
    }
  }

  async #read(tubes: Tubes, now: number): Promise<Recovery> {
    const giveWay = makeGiveWay()
    let tornBytes = 0
    for (const segment of this.#segments) {
      const path = this.#pathOf(segment)
      const bytes = readFileSync(path)
      let whole = 0
      for (let end: number | undefined = 0; end !== undefined; ) {
        whole = end
        await giveWay()
        end = readFrame(bytes, whole, (change) => this.#replay(change, tubes, segment))
      }
      if (whole === bytes.length) continue
      tornBytes += bytes.length - whole
      writeFileSync(`${path}.torn`, bytes.subarray(whole))
      truncateSync(path, whole)
    }
    const buried: Job[] = []
    for (let job = this.#oldest; job !== undefined; job = job.newer) {
      const pause = giveWay()
      if (pause !== undefined) await pause
      if (job.state === 'buried') buried.push(job)
      else tubes.restore(job, now)
    }
    buried.sort((a, b) => a.deadlineAt - b.deadlineAt || a.id - b.id)
    for (const job of buried) tubes.restore(job, now)
    return { jobs: tubes.jobCount, tornBytes }
  }

  #replay(change: StoredChange, tubes: Tubes, segment: number): void {
    if (change.kind === 'head') {
      if (change.format > FORMAT) {
        throw new BrokerError('journal', `the journal in ${this.#folder} was written by a newer version`)
      }
      tubes.reserveIds(change.nextId)
      return
    }
    if (change.kind === 'put') {
      this.#replayPut(change.job, tubes, segment)
      return
    }
    const job = tubes.findJob(change.id)
    if (job === undefined) return
    if (change.kind === 'delete') {
      this.#unlink(job)
      tubes.forget(job)
    } else {
      apply(change, job)
    }
  }

  /** A job that is known already was written anew by compaction. */
  #replayPut(kept: Kept, tubes: Tubes, segment: number): void {
    let job = tubes.findJob(kept.id)
    if (job === undefined) {
      const tube = tubes.tubeOf(kept.tube)
      job = new Job(kept.id, tube, kept.priority, kept.delaySeconds, kept.ttrSeconds, kept.createdAt, kept.deadlineAt)
      job.body = kept.body
      tubes.admit(job)
    } else {
      this.#unlink(job)
      job.priority = kept.priority
      job.delaySeconds = kept.delaySeconds
      job.deadlineAt = kept.deadlineAt
    }
    job.state = kept.state
    job.reserves = kept.reserves
    job.timeouts = kept.timeouts
    job.releases = kept.releases
    job.buries = kept.buries
    job.kicks = kept.kicks
    job.segment = segment
    this.#link(job)
  }

  /** Keeps a change for the next `write`. */
  note(change: Change, job: Job): void {
    this.#recordsWritten++
    this.#frame.add(change, job)
    if (change === 'put') {
      job.segment = this.#current
      this.#link(job)
    } else if (change === 'delete') {
      this.#unlink(job)
    }
    if (this.#frame.size > FRAME_LIMIT) this.write()
  }

  /** Whether puts are taken: not while the disk is full. */
  takesPut(bytes: number, now: number): boolean {
    if (this.#ballast === 'spent') {
      if (now - this.#ballastTriedAt < BALLAST_RETRY_MS) return false
      this.#ballastTriedAt = now
      this.#keepBallast()
    }
    return this.#isBallastKept() && (bytes <= this.#options.ballastBytes / 2 || this.#makeRoom(bytes))
  }

  /** For a body that the ballast has no room for: the disk is asked for it before the job is taken. */
  #makeRoom(bytes: number): boolean {
    if (!this.write()) return false
    try {
      for (let at = 0; at < bytes + FRAME_LIMIT; )
        at += writeSync(this.#descriptor, ZEROS, 0, ZEROS.length, this.#size + at)
      return true
    } catch {
      return false
    } finally {
      this.#cut()
    }
  }

  #isBallastKept(): boolean {
    return this.#ballast === 'kept'
  }

  /** Writes what was noted. False when the disk takes it not even so: it stays noted, and nothing may be answered. */
  write(): boolean {
    const { size } = this.#frame
    if (size === 0) return true
    while (!this.#append(this.#frame.seal())) {
      if (this.#ballast === 'spent') return false
      this.#spendBallast()
    }
    this.#frame.clear()
    this.#isDirty = true
    this.#migrate(Math.max(MIGRATE_BYTES, 2 * size))
    this.#needed = this.#oldest?.segment ?? this.#current
    if (this.#size >= this.#options.segmentBytes) this.#rotate()
    if (this.#options.neverSyncs) this.#removeDead(this.#needed)
    return true
  }

  #append(frame: Buffer): boolean {
    try {
      for (let at = 0; at < frame.length; ) {
        at += writeSync(this.#descriptor, frame, at, frame.length - at, this.#size + at)
      }
      this.#size += frame.length
      return true
    } catch {
      this.#cut()
      return false
    }
  }

  /** Gives the room of a frame back that is not whole. */
  #cut(): void {
    try {
      ftruncateSync(this.#descriptor, this.#size)
    } catch {
      // The next write goes to the same place.
    }
  }

  /** Makes durable what was written so far; segments that nobody needs any more go only then. */
  sync(done: (error: Error | null) => void): void {
    const needed = this.#needed
    this.#isDirty = false
    this.#isSyncing = true
    fdatasync(this.#descriptor, (error) => {
      this.#isSyncing = false
      for (const descriptor of this.#retired.splice(0)) closeSync(descriptor)
      if (error === null) this.#removeDead(needed)
      else this.#isDirty = true
      done(error)
    })
  }

  /** Writes, syncs and gives the folder free. */
  async close(): Promise<void> {
    while (this.#isSyncing) await new Promise(setImmediate)
    try {
      this.write()
      if (!this.#options.neverSyncs) fdatasyncSync(this.#descriptor)
    } finally {
      closeSync(this.#descriptor)
      await this.#unlock()
    }
  }

  /** For a start that failed. */
  async abandon(): Promise<void> {
    if (this.#descriptor >= 0) closeSync(this.#descriptor)
    await this.#unlock()
  }

  // Segments

  #pathOf(segment: number): string {
    return join(this.#folder, `journal.${String(segment).padStart(8, '0')}`)
  }

  #begin(): void {
    const segment = this.#current + 1
    const descriptor = openSync(this.#pathOf(segment), 'wx')
    try {
      const head = new Frame()
      head.addHead(this.#nextId())
      const frame = head.seal()
      writeSync(descriptor, frame, 0, frame.length, 0)
      this.#syncFolder()
      this.#size = frame.length
    } catch (error) {
      closeSync(descriptor)
      unlinkSync(this.#pathOf(segment))
      throw error
    }
    this.#segments.push(segment)
    this.#descriptor = descriptor
  }

  #rotate(): void {
    const full = this.#descriptor
    try {
      if (!this.#options.neverSyncs) fdatasyncSync(full)
      this.#begin()
      if (this.#isSyncing) this.#retired.push(full)
      else closeSync(full)
    } catch {
      // No room for another one: the current one grows on.
    }
  }

  #syncFolder(): void {
    const descriptor = openSync(this.#folder, 'r')
    try {
      fsyncSync(descriptor)
    } finally {
      closeSync(descriptor)
    }
  }

  /** One that cannot be removed is tried again later, before all that follow it. */
  #removeDead(needed: number): void {
    while (this.#segments.length > 1 && (this.#segments[0] as number) < needed) {
      if (!removeIfThere(this.#pathOf(this.#segments[0] as number))) return
      this.#segments.shift()
    }
  }

  /** Writes the jobs with the oldest records anew, as long as there are more segments than the living jobs need. */
  #migrate(bytes: number): void {
    const { length } = this.#segments
    const allowed = SPARE_SEGMENTS + Math.ceil((2 * this.#liveBytes) / this.#options.segmentBytes)
    if (length <= allowed || length === this.#crampedSegments || this.#ballast === 'spent') return
    const jobs: Job[] = []
    for (let [job, left] = [this.#oldest, bytes]; job !== undefined && left > 0; job = job.newer) {
      if (job.segment === this.#current) break
      left -= sizeOfPut(job)
      this.#frame.add('put', job)
      jobs.push(job)
    }
    // Of a frame of its own, which takes nothing of the ballast, and may fail: then it is for later.
    const isWritten = jobs.length === 0 || this.#append(this.#frame.seal())
    this.#crampedSegments = isWritten ? 0 : length
    this.#frame.clear()
    for (const job of isWritten ? jobs : []) {
      this.#unlink(job)
      job.segment = this.#current
      this.#link(job)
      this.#recordsMigrated++
      this.#recordsWritten++
    }
  }

  #link(job: Job): void {
    job.older = this.#newest
    if (this.#newest === undefined) this.#oldest = job
    else this.#newest.newer = job
    this.#newest = job
    this.#liveBytes += sizeOfPut(job)
  }

  #unlink(job: Job): void {
    if (job.older === undefined) this.#oldest = job.newer
    else job.older.newer = job.newer
    if (job.newer === undefined) this.#newest = job.older
    else job.newer.older = job.older
    job.older = undefined
    job.newer = undefined
    this.#liveBytes -= sizeOfPut(job)
  }

  // Space for when there is none

  #keepBallast(): void {
    const path = join(this.#folder, BALLAST)
    try {
      if (statSync(path, { throwIfNoEntry: false })?.size === this.#options.ballastBytes) {
        this.#ballast = 'kept'
        return
      }
      writeFileSync(path, Buffer.alloc(this.#options.ballastBytes), { flush: true })
      this.#ballast = 'kept'
    } catch {
      // Part of it would take the space that changes need.
      removeIfThere(path)
      this.#ballast = 'spent'
    }
  }

  #spendBallast(): void {
    this.#ballast = 'spent'
    removeIfThere(join(this.#folder, BALLAST))
  }
}

/** Lets others have their turn whenever ours has lasted long enough. */
function makeGiveWay(): () => Promise<void> | undefined {
  let endsAt = performance.now() + TURN_MS
  return () => {
    if (performance.now() < endsAt) return undefined
    return new Promise((resolve) =>
      setImmediate(() => {
        endsAt = performance.now() + TURN_MS
        resolve()
      }),
    )
  }
}

function apply(change: Exclude<StoredChange, { kind: 'head' | 'put' | 'delete' }>, job: Job): void {
  switch (change.kind) {
    case 'reserve':
      job.reserves++
      job.state = 'ready'
      return
    case 'timeout':
      job.timeouts++
      job.state = 'ready'
      return
    case 'kick':
      job.kicks++
      job.state = 'ready'
      return
    case 'release':
      job.releases++
      job.priority = change.priority
      job.delaySeconds = change.delaySeconds
      job.deadlineAt = change.deadlineAt
      job.state = change.delaySeconds > 0 ? 'delayed' : 'ready'
      return
    case 'bury':
      job.buries++
      job.priority = change.priority
      job.deadlineAt = change.deadlineAt
      job.state = 'buried'
      return
    default:
      change.kind satisfies 'delete'
  }
}

/** @returns whether it is not there now; it may be on a disk that is read-only, or not ours to remove */
function removeIfThere(path: string): boolean {
  try {
    unlinkSync(path)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT'
  }
}
