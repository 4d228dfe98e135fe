/**
 * One connection to a tracker's SQLite file, with what its calls wait for. The only file that knows libsql.
 *
 * The library is synchronous. A transaction runs from BEGIN IMMEDIATE to COMMIT without an await, so calls never mix on
 * the one connection. Writes that are asked for in one turn of the event loop share a transaction: its locks, its pages
 * and, when one of them is to be durable, its fsync are paid once. None settles before the COMMIT. When it fails each is
 * tried alone: what one of them meets touches no other.
 *
 * While another process writes, SQLite waits BUSY_MS at most; then we let the event loop go on and try again, all waiting
 * writes at once, until the patience of each is over. Readers never wait for writers (WAL).
 *
 * What libsql 0.5 needs (github.com/tursodatabase/libsql-js, 228, 230, 237, 238): BEGIN, COMMIT and PRAGMA go through
 * `exec`, since a prepared one that fails with SQLITE_BUSY stays in progress and every later COMMIT fails; RETURNING goes
 * through `all`, since `run` stops at the first row; `close` leaves descriptors to the end of the process.
 *
 * Never open the file by other means in this process: closing it would drop SQLite's locks (POSIX, per process).
 */

import { statSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import Database from 'libsql'
import { problemOf } from './sqlite-problem.ts'
import { TrackerError } from './tracker.ts'

const BUSY_MS = 20

export type Value = string | number | null
export type Row = Readonly<Record<string, Value>>

/** `durable` survives a power failure when the promise settles; `fast` survives only the death of the process. */
export type Durability = 'durable' | 'fast'

/** What SQLite does at a COMMIT. */
const SYNCHRONOUS = { durable: 'FULL', fast: 'NORMAL' } as const

/** A write that was asked for. */
interface Asked {
  readonly durability: Durability
  readonly work: () => unknown
  /** performance.now() */
  readonly limit: number
  readonly resolve: (value: unknown) => void
  readonly reject: (problem: TrackerError) => void
}

export class TrackerFile {
  readonly path: string
  private readonly db: Database.Database
  private readonly identity: string
  private readonly patienceMs: number
  private readonly statements = new Map<string, ReturnType<Database.Database['prepare']>>()
  private asked: Asked[] = []
  /** until all that were asked for are settled */
  private writing: Promise<void> | undefined
  private durability: Durability | undefined
  private closed = false

  constructor(path: string, patienceMs: number) {
    this.path = path
    this.patienceMs = patienceMs
    try {
      this.db = new Database(path, { timeout: BUSY_MS })
      this.identity = identityOf(path)
    } catch (error) {
      throw this.problem(error)
    }
  }

  /** Runs in a transaction, in the order of asking; `work` has no await and may run several times. */
  write<T>(durability: Durability, work: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      const limit = performance.now() + this.patienceMs
      this.asked.push({ durability, work, limit, resolve: resolve as (value: unknown) => void, reject })
      this.writing ??= this.writeAsked()
    })
  }

  /** Runs queries on one state of the file. */
  read<T>(work: () => T): Promise<T> {
    return this.look(() => this.enclose('BEGIN', work))
  }

  /** The same for a single query, which needs no transaction. */
  look<T>(work: () => T): Promise<T> {
    return this.retry(performance.now() + this.patienceMs, work)
  }

  all(text: string, ...values: Value[]): Row[] {
    return this.prepare(text).all(values) as Row[]
  }

  /** Whether a query has a row. */
  has(text: string, ...values: Value[]): boolean {
    return this.prepare(text).raw().get(values) !== undefined
  }

  /** For statements without rows; how many it changed. */
  run(text: string, values: Value[]): number {
    return this.prepare(text).run(values).changes
  }

  exec(text: string): void {
    this.db.exec(text)
  }

  /** Moves the write-ahead log into the file and empties it, unless somebody reads or writes just now. */
  checkpoint(): void {
    try {
      this.all('PRAGMA wal_checkpoint(TRUNCATE)')
    } catch {
      // It is one of several: SQLite does it without being asked, when the log has 1000 pages.
    }
  }

  async close(): Promise<void> {
    if (this.closed) return
    await this.writing
    this.checkpoint()
    this.release()
  }

  /** Closes without a write. */
  release(): void {
    this.closed = true
    this.statements.clear()
    this.db.close()
  }

  problem(error: unknown): TrackerError {
    return problemOf(error, this.path, this.patienceMs)
  }

  async retry<T>(limit: number, work: () => T): Promise<T> {
    for (;;) {
      try {
        this.refuseWhenClosed()
        return work()
      } catch (error) {
        const problem = this.problem(error)
        if (problem.code !== 'busy' || performance.now() >= limit) throw problem
        await pause()
      }
    }
  }

  private async writeAsked(): Promise<void> {
    do {
      await new Promise((resolve) => setImmediate(resolve))
      const together = this.asked.splice(0)
      const problem = this.commit(together)
      if (problem === undefined) continue
      if (problem.code === 'busy' || together.length === 1) await this.refuse(together, problem)
      else for (const one of together) await this.writeAlone(one)
    } while (this.asked.length > 0)
    // With no await since the question: nobody can ask in between.
    this.writing = undefined
  }

  private async writeAlone(one: Asked): Promise<void> {
    const problem = this.commit([one])
    if (problem !== undefined) await this.refuse([one], problem)
  }

  /** Those that met another process and have patience left are asked for again. */
  private async refuse(together: readonly Asked[], problem: TrackerError): Promise<void> {
    const now = performance.now()
    const isPatient = ({ limit }: Asked) => problem.code === 'busy' && now < limit
    for (const one of together) if (!isPatient(one)) one.reject(problem)
    this.asked.unshift(...together.filter(isPatient))
    if (problem.code === 'busy') await pause()
  }

  /** One transaction. What went wrong, and then nothing is written and nobody is told. */
  private commit(together: readonly Asked[]): TrackerError | undefined {
    let values: unknown[]
    try {
      this.refuseWhenClosed()
      this.refuseWhenReplaced()
      this.setDurability(together.some(({ durability }) => durability === 'durable') ? 'durable' : 'fast')
      values = this.enclose('BEGIN IMMEDIATE', () => together.map(({ work }) => work()))
    } catch (error) {
      return this.problem(error)
    }
    for (const [i, { resolve }] of together.entries()) resolve(values[i])
    return undefined
  }

  private setDurability(durability: Durability): void {
    if (this.durability === durability) return
    this.exec(`PRAGMA synchronous = ${SYNCHRONOUS[durability]}`)
    this.durability = durability
  }

  private refuseWhenClosed(): void {
    if (this.closed) throw new TrackerError('failed', `the tracker ${this.path} is closed`)
  }

  /** Another file of that name would let two attempts of one job begin: one here, one there. */
  private refuseWhenReplaced(): void {
    if (identityOf(this.path) === this.identity) return
    const came = `the tracker ${this.path} is not the file that it was at the start`
    throw new TrackerError('failed', `${came}: put that one back, or restart all workers that use it`)
  }

  private enclose<T>(opening: string, work: () => T): T {
    this.exec(opening)
    try {
      const value = work()
      this.exec('COMMIT')
      return value
    } catch (error) {
      // A full disk rolls back by itself.
      if (this.db.inTransaction) this.exec('ROLLBACK')
      throw error
    }
  }

  private prepare(text: string): ReturnType<Database.Database['prepare']> {
    let statement = this.statements.get(text)
    if (statement === undefined) {
      statement = this.db.prepare(text)
      this.statements.set(text, statement)
    }
    return statement
  }
}

/** Lets the event loop, and another process, go on. */
function pause(): Promise<void> {
  return sleep(BUSY_MS + Math.random() * 2 * BUSY_MS)
}

/** Device and inode, without opening the file; empty when there is none. */
function identityOf(path: string): string {
  const { dev, ino } = statSync(path, { throwIfNoEntry: false }) ?? {}
  return dev === undefined ? '' : `${dev}:${ino}`
}
