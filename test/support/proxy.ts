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
  const server = createServer((client) => {
    const born = generation
    const broker = openSocket(targetPort, '127.0.0.1')
    for (const socket of [client, broker]) {
      sockets.add(socket)
      socket.on('error', () => undefined)
      socket.on('close', () => {
        sockets.delete(socket)
        client.destroy()
        broker.destroy()
      })
    }
    broker.on('data', (chunk) => {
      if (born === generation) client.write(chunk)
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
    cut,
  }
}
