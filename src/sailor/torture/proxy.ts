/**
 * A TCP proxy before the broker that misbehaves when it is told to. Each worker and the producers have one of their own,
 * so that their roads fail apart. Every disturbance ends by itself.
 */

import { once } from 'node:events'
import { type AddressInfo, createServer, connect as openSocket, type Server, type Socket } from 'node:net'

export interface TcpProxy {
  readonly port: number
  /** Ends all connections. */
  cut(): void
  /** Holds back what is said, in both directions, by `delayMs`. */
  delay(delayMs: number, durationMs: number): void
  /** Lets nothing through on the connections that there are; then ends them. */
  freeze(durationMs: number): void
  /** Ends one side of each connection; the other learns nothing of it until the time is over. */
  halfOpen(gone: 'client' | 'broker', durationMs: number): void
  /** No disturbance is left. */
  calm(): void
  close(): Promise<void>
}

interface Link {
  readonly client: Socket
  readonly broker: Socket
  isFrozen: boolean
  /** the other side is not told when one ends */
  isHalf: boolean
}

interface Sea {
  readonly links: Set<Link>
  readonly timers: Set<NodeJS.Timeout>
  delayMs: number
}

export async function startProxy(host: string, port: number): Promise<TcpProxy> {
  const sea: Sea = { links: new Set(), timers: new Set(), delayMs: 0 }
  const server = createServer((client) => join(sea, client, openSocket(port, host))).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const later = (ms: number, action: () => void) => {
    const timer = setTimeout(() => {
      sea.timers.delete(timer)
      action()
    }, ms)
    sea.timers.add(timer)
  }
  const disturb = (links: readonly Link[], durationMs: number) => later(durationMs, () => links.forEach(end))
  return {
    port: (server.address() as AddressInfo).port,
    cut: () => [...sea.links].forEach(end),
    delay: (delayMs, durationMs) => {
      sea.delayMs = delayMs
      later(durationMs, () => {
        sea.delayMs = 0
      })
    },
    freeze: (durationMs) => {
      const links = [...sea.links]
      for (const link of links) link.isFrozen = true
      disturb(links, durationMs)
    },
    halfOpen: (gone, durationMs) => {
      const links = [...sea.links]
      for (const link of links) {
        link.isFrozen = true
        link.isHalf = true
        link[gone].destroy()
      }
      disturb(links, durationMs)
    },
    calm: () => {
      sea.delayMs = 0
      for (const link of sea.links) if (link.isFrozen) end(link)
    },
    close: () => close(sea, server),
  }
}

function join(sea: Sea, client: Socket, broker: Socket): void {
  const link: Link = { client, broker, isFrozen: false, isHalf: false }
  sea.links.add(link)
  for (const [from, to] of [
    [client, broker],
    [broker, client],
  ] as const) {
    const pass = makePass(sea, link, to)
    from.setNoDelay(true)
    from.on('error', () => undefined)
    from.on('data', pass)
    from.on('close', () => {
      if (client.destroyed && broker.destroyed) sea.links.delete(link)
      if (!link.isHalf) to.destroy()
    })
  }
}

/** Keeps the order of what it passes on, also when the delay changes. */
function makePass(sea: Sea, link: Link, to: Socket): (chunk: Buffer) => void {
  const waiting: Buffer[] = []
  let lastDue = 0
  const passNext = () => {
    const chunk = waiting.shift()
    if (chunk !== undefined && !link.isFrozen && !to.destroyed) to.write(chunk)
  }
  return (chunk) => {
    if (link.isFrozen) return
    const now = performance.now()
    lastDue = Math.max(lastDue, now + sea.delayMs)
    waiting.push(chunk)
    if (waiting.length === 1 && lastDue <= now) passNext()
    else setTimeout(passNext, Math.ceil(lastDue - now))
  }
}

function end(link: Link): void {
  link.isHalf = false
  link.client.destroy()
  link.broker.destroy()
}

async function close(sea: Sea, server: Server): Promise<void> {
  for (const timer of sea.timers) clearTimeout(timer)
  server.close()
  for (const link of sea.links) end(link)
}
