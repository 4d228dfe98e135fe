/**
 * What the slots of a worker know together of the servers that they take jobs from, where there are several.
 *
 *     connecting --answers--> up
 *     connecting, up --a slot or a look lost it--> down --answers--> up
 *
 * Slots use the servers that are up. One that is down is looked at from here, with growing pauses: no slot waits for it
 * while there are jobs on others, and its loss is told once, not by each slot.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import type { Queue } from '../queue/queue.ts'
import type { Bus } from '../report/events.ts'

/** One server that jobs are taken from. */
export interface QueueServer {
  /** `host:port` */
  readonly name: string
  /** one try to connect; throws QueueError */
  readonly open: () => Promise<Queue>
}

/** For people and their monitors. */
export interface ServerReport {
  readonly server: string
  readonly state: 'connecting' | 'up' | 'down'
  /** ISO 8601 */
  readonly since: string
}

export interface Servers {
  isUp(server: QueueServer): boolean
  /**
   * A slot lost its connection to it, or could not have one.
   * @param sinceMs performance.now() when that connection was begun: an old one tells nothing of a server that is back
   */
  lost(server: QueueServer, error: string, sinceMs: number): void
  /** Settles when one comes up, after `ms`, or when the signal says so. */
  wait(ms: number, signal: AbortSignal): Promise<void>
  /** Other ones from now on; what is known of those that stay is kept. */
  use(servers: readonly QueueServer[]): void
  report(): readonly ServerReport[]
  stop(): void
}

const PAUSE_MIN_MS = 100
const PAUSE_MAX_MS = 3_000
/** One that was up for less did not recover: the pauses go on growing. */
const STEADY_MS = 10_000

interface Entry {
  server: QueueServer
  state: ServerReport['state']
  since: Date
  /** performance.now() of the last change */
  changedMs: number
  failures: number
  /** set while its loss is told */
  lostMs: number | undefined
  /** ends the looks at it */
  readonly gone: AbortController
}

/** Looks at each server once, and until it answers. With a single one there is nothing to choose, and nothing is done. */
export function watchServers(servers: readonly QueueServer[], bus: Bus): Servers {
  const watched = new WatchedServers(bus)
  watched.use(servers)
  return watched
}

class WatchedServers implements Servers {
  readonly #bus: Bus
  readonly #waiting = new Set<() => void>()
  #entries = new Map<string, Entry>()

  constructor(bus: Bus) {
    this.#bus = bus
  }

  use(servers: readonly QueueServer[]): void {
    const former = this.#entries
    this.#entries = new Map()
    for (const server of servers.length > 1 ? servers : []) {
      const entry = former.get(server.name) ?? makeEntry(server)
      this.#entries.set(server.name, entry)
      entry.server = server
      if (!former.delete(server.name)) void this.#look(entry)
    }
    for (const { gone } of former.values()) gone.abort()
  }

  isUp({ name }: QueueServer): boolean {
    return this.#entries.get(name)?.state === 'up'
  }

  lost({ name }: QueueServer, error: string, sinceMs: number): void {
    const entry = this.#entries.get(name)
    // Of several slots that lose it at once the first one tells.
    if (entry?.state !== 'up' || sinceMs < entry.changedMs) return
    if (performance.now() - entry.changedMs > STEADY_MS) entry.failures = 0
    this.#fail(entry, error)
    void this.#pause(entry).then(() => this.#look(entry))
  }

  #fail(entry: Entry, error: string): void {
    if (entry.state !== 'down') change(entry, 'down')
    entry.failures++
    if (entry.lostMs !== undefined) return
    entry.lostMs = performance.now()
    this.#bus.emit({ event: 'broker_lost', server: entry.server.name, error })
  }

  /** Until it answers, or is none of ours any more. */
  async #look(entry: Entry): Promise<void> {
    for (; !entry.gone.signal.aborted; await this.#pause(entry)) {
      try {
        const queue = await entry.server.open()
        queue.close()
        break
      } catch (error) {
        if (!entry.gone.signal.aborted) this.#fail(entry, error instanceof Error ? error.message : String(error))
      }
    }
    if (entry.gone.signal.aborted) return
    change(entry, 'up')
    if (entry.lostMs !== undefined) {
      const seconds = Math.round((performance.now() - entry.lostMs) / 100) / 10
      this.#bus.emit({ event: 'broker_back', server: entry.server.name, seconds })
    }
    entry.lostMs = undefined
    for (const wake of this.#waiting) wake()
  }

  /** Up to half less, at random: many workers must not come back all at once. */
  async #pause({ failures, gone }: Entry): Promise<void> {
    const ms = Math.min(PAUSE_MIN_MS * 2 ** Math.min(failures, 10), PAUSE_MAX_MS)
    await sleep(ms * (0.5 + Math.random() / 2), undefined, { signal: gone.signal }).catch(() => undefined)
  }

  wait(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer)
        signal.removeEventListener('abort', done)
        this.#waiting.delete(done)
        resolve()
      }
      const timer = setTimeout(done, ms)
      signal.addEventListener('abort', done)
      this.#waiting.add(done)
      if (signal.aborted || [...this.#entries.values()].some(({ state }) => state === 'up')) done()
    })
  }

  report(): readonly ServerReport[] {
    return [...this.#entries.values()].map(({ server, state, since }) => ({
      server: server.name,
      state,
      since: since.toISOString(),
    }))
  }

  stop(): void {
    this.use([])
  }
}

function makeEntry(server: QueueServer): Entry {
  const state = { state: 'connecting', since: new Date(), changedMs: performance.now() } as const
  return { server, ...state, failures: 0, lostMs: undefined, gone: new AbortController() }
}

function change(entry: Entry, state: ServerReport['state']): void {
  entry.state = state
  entry.since = new Date()
  entry.changedMs = performance.now()
}
