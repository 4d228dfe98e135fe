/** A broker in this process that speaks beanstalkd 1.12's protocol: state, journal and sockets put together. */

import { randomBytes } from 'node:crypto'
import { getHeapStatistics } from 'node:v8'
import { makeCounters } from './commands.ts'
import { type Journal, openJournal, type Recovery } from './journal.ts'
import { Server } from './server.ts'
import type { About } from './statistics.ts'
import { Tubes } from './tubes.ts'

/**
 * When the journal is synced to the disk. It is always written before an answer, so that the end of the process loses
 * nothing; this is for the end of the machine. `each`: before an answer, too; all commands of a moment share one sync.
 * `interval`: some 50 ms later at most. `never`: when the kernel likes.
 */
export type Fsync = 'each' | 'interval' | 'never'

export interface BrokerOptions {
  readonly host: string
  /** 0: any that is free */
  readonly port: number
  /** Without it jobs live as long as the process. */
  readonly journalDir?: string | undefined
  readonly maxJobBytes: number
  readonly fsync: Fsync
  /** clients at a time; more are hung up on; undefined: as many as come */
  readonly maxConnections?: number | undefined
  /** for tests: how large a segment of the journal grows */
  readonly segmentBytes?: number
}

export interface Broker {
  readonly host: string
  readonly port: number
  /** What the journal had; undefined without one. */
  readonly recovery: Recovery | undefined
  /** Numbers as `stats` tells them. */
  stats(): BrokerStats
  /** Takes no more jobs: puts are answered with DRAINING. There is no way back but a restart. */
  drain(): void
  /** Ends all connections, once, however often it is called; what they had reserved is ready at the next start. */
  close(): Promise<void>
}

export interface BrokerStats {
  readonly ready: number
  readonly reserved: number
  readonly delayed: number
  readonly buried: number
  readonly waiting: number
  readonly clients: number
  readonly totalJobs: number
  readonly isDraining: boolean
}

/** beanstalkd's own: the size of a segment, the time between two syncs. */
const SEGMENT_BYTES = 10_485_760
const SYNC_MS = 50
/** A body is a string here; a few of this size are no danger to the process. */
const LARGEST_MAX_JOB_BYTES = 1 << 26
/** Of what the process may have: at the end of it the process dies, and the next one that reads the journal after it. */
const MEMORY_SHARE = 0.5
const YOUNG_BYTES = 192 * 2 ** 20
/** Larger than what one turn writes, so that what was promised can be kept. */
const BALLAST_BYTES = 1 << 22

/** @throws BrokerError */
export async function startBroker(options: BrokerOptions): Promise<Broker> {
  const { fsync, journalDir, segmentBytes = SEGMENT_BYTES } = options
  // Even as a monotonic clock is, and near enough to the time of day for what is kept over a restart.
  const now = () => performance.timeOrigin + performance.now()
  const startedAt = now()
  const journal =
    journalDir === undefined
      ? undefined
      : await openJournal(journalDir, { segmentBytes, ballastBytes: BALLAST_BYTES, neverSyncs: fsync === 'never' })
  try {
    const tubes = new Tubes({
      answer: (client, outcome) => server.answer(client, outcome),
      note: (change, job) => journal?.note(change, job),
    })
    const counters = makeCounters()
    const id = randomBytes(8).toString('hex')
    const maxJobBytes = Math.min(options.maxJobBytes, LARGEST_MAX_JOB_BYTES)
    const none = { oldest: 0, current: 0, migrated: 0, written: 0, segmentBytes }
    const tell = (): About => ({
      commands: counters,
      maxJobBytes,
      startedAt,
      isDraining: server.isDraining,
      id,
      journal: journal?.stats ?? none,
    })
    const limits = {
      now,
      syncsEach: fsync === 'each',
      maxMemoryBytes: oldSpaceBytes() * MEMORY_SHARE,
      maxConnections: options.maxConnections,
    }
    const server = new Server({ tubes, counters, maxJobBytes, tell }, journal, limits)
    // Where the port is another's the journal is not touched, however often this is tried.
    const port = await server.listen(options.host, options.port)
    const recovery = await journal?.restore(tubes, startedAt).catch((error: unknown) => endWith(server, error))
    server.begin()
    const clock = journal !== undefined && fsync === 'interval' ? startSyncing(journal) : undefined
    let closing: Promise<void> | undefined
    const close = async () => {
      clearInterval(clock)
      await server.close()
      await journal?.close()
    }
    return {
      host: options.host,
      port,
      recovery,
      stats: () => makeStats(tubes, server),
      drain: () => {
        server.isDraining = true
      },
      close: () => (closing ??= close()),
    }
  } catch (error) {
    await journal?.abandon()
    throw error
  }
}

function makeStats({ counts }: Tubes, { isDraining }: Server): BrokerStats {
  const { ready, reserved, delayed, buried, waiting, clients, totalJobs } = counts
  return { ready, reserved, delayed, buried, waiting, clients, totalJobs, isDraining }
}

async function endWith(server: Server, error: unknown): Promise<never> {
  await server.close()
  throw error
}

/** Bodies come to rest in V8's old space. Its limit is told together with that of the young one, at most 192 MiB in Node 24. */
function oldSpaceBytes(): number {
  const limit = getHeapStatistics().heap_size_limit
  return Math.max(limit - YOUNG_BYTES, limit / 3)
}

function startSyncing(journal: Journal): NodeJS.Timeout {
  let isSyncing = false
  return setInterval(() => {
    if (isSyncing || !journal.isDirty) return
    isSyncing = true
    journal.sync(() => {
      isSyncing = false
    })
  }, SYNC_MS).unref()
}
