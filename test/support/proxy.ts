/** A TCP proxy before the broker, with which a test disturbs the connections of one worker. */

import { once } from 'node:events'
import { type AddressInfo, createServer, connect as openSocket, type Socket } from 'node:net'
import { onTestFinished } from 'vitest'

export interface Proxy {
  readonly port: number
  /** From the first chunk that holds this word on (after `skip` that do), what the client says is kept back. */
  holdFrom(word: string, skip?: number): void
  /** Something is kept back. */
  isHolding(): boolean
  /** Lets all through again, what was kept back first. */
  release(): void
  /** From now on nothing passes on the connections that are there, and none is closed: half-open, as when a line is cut. */
  silence(): void
  /** Leads each client to the broker by a new connection: what it had reserved by the old one is no longer its own. */
  renew(): void
  /** Cuts all connections. */
  cut(): void
}

export async function startProxy(targetPort: number): Promise<Proxy> {
  const sockets = new Set<Socket>()
  const held: (() => void)[] = []
  let word: string | undefined
  let holding = false
  let toSkip = 0
  let generation = 0
  const renewals = new Set<() => void>()
  const server = createServer((client) => {
    const born = generation
    const lead = () => {
      const socket = openSocket(targetPort, '127.0.0.1')
      sockets.add(socket)
      socket.on('error', () => undefined)
      socket.on('close', () => {
        sockets.delete(socket)
        if (socket === broker) client.destroy()
      })
      socket.on('data', (chunk) => {
        if (born === generation) client.write(chunk)
      })
      return socket
    }
    const renew = () => {
      const old = broker
      broker = lead()
      old.destroy()
    }
    let broker = lead()
    renewals.add(renew)
    sockets.add(client)
    client.on('error', () => undefined)
    client.on('close', () => {
      sockets.delete(client)
      renewals.delete(renew)
      broker.destroy()
    })
    client.on('data', (chunk) => {
      if (born !== generation) return
      if (word !== undefined && chunk.includes(word)) holding ||= toSkip-- <= 0
      if (holding) held.push(() => broker.write(chunk))
      else broker.write(chunk)
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const cut = () => {
    for (const socket of sockets) socket.destroy()
  }
  onTestFinished(() => {
    cut()
    server.close()
  })
  return {
    port: (server.address() as AddressInfo).port,
    holdFrom: (from, skip = 0) => {
      word = from
      toSkip = skip
    },
    isHolding: () => holding,
    release: () => {
      word = undefined
      holding = false
      for (const send of held.splice(0)) send()
    },
    silence: () => {
      generation++
    },
    renew: () => {
      for (const renew of renewals) renew()
    },
    cut,
  }
}
