/** A connection to a broker as bytes: what is sent is what is written here, what comes is read reply by reply. */

import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { onTestFinished } from 'vitest'

export class Wire {
  readonly #socket: Socket
  #bytes: Buffer = Buffer.alloc(0)
  #wake: (() => void) | undefined
  #isClosed = false

  constructor(socket: Socket) {
    this.#socket = socket
    socket.setNoDelay(true)
    socket.on('error', () => undefined)
    socket.on('data', (bytes) => {
      this.#bytes = this.#bytes.length === 0 ? (bytes as Buffer) : Buffer.concat([this.#bytes, bytes as Buffer])
      this.#wake?.()
    })
    socket.on('close', () => {
      this.#isClosed = true
      this.#wake?.()
    })
  }

  static async open(port: number): Promise<Wire> {
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    await once(socket, 'connect')
    socket.on('end', () => socket.end())
    return new Wire(socket)
  }

  send(bytes: string | Buffer): void {
    this.#socket.write(bytes, 'latin1')
  }

  /** Hangs up on our side; replies may still come. */
  end(): void {
    this.#socket.end()
  }

  /** Takes nothing of what comes, until `resume`. */
  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    const closed = once(this.#socket, 'close')
    this.#socket.destroy()
    await closed
  }

  /** The next reply with its body, `closed` after the end of the connection. @throws after 5 s without one */
  async read(): Promise<string> {
    const until = Date.now() + 5000
    for (;;) {
      const reply = this.take()
      if (reply !== undefined) return reply
      if (this.#isClosed) return 'closed'
      const left = until - Date.now()
      if (left <= 0) throw new Error(`no reply came; so far: ${JSON.stringify(this.#bytes.toString('latin1'))}`)
      let timer: NodeJS.Timeout | undefined
      await new Promise<void>((resolve) => {
        timer = setTimeout(resolve, left)
        this.#wake = resolve
      })
      clearTimeout(timer)
    }
  }

  /** The next reply, if it is here already. */
  take(): string | undefined {
    const end = this.#bytes.indexOf('\r\n')
    if (end < 0) return undefined
    const line = this.#bytes.toString('latin1', 0, end)
    const size = /^(?:OK|(?:RESERVED|FOUND) \d+) (\d+)$/.exec(line)?.[1]
    const total = end + 2 + (size === undefined ? 0 : Number(size) + 2)
    if (this.#bytes.length < total) return undefined
    const reply = this.#bytes.toString('latin1', 0, total)
    this.#bytes = this.#bytes.subarray(total)
    return reply
  }
}

/** The lines of a reply without those that depend on the clock, the process, or how the log is kept. */
export function withoutClock(reply: string): string {
  if (!reply.startsWith('OK ')) return reply
  return reply
    .replace(/^OK \d+/, 'OK')
    .replace(
      /^(age|time-left|pause-time-left|file|pid|version|rusage-[us]time|uptime|binlog-[a-z-]+|id|hostname|os|platform): .*$/gm,
      (line, key: string) => (key === 'id' && /^id: \d+$/.test(line) ? line : `${key}: *`),
    )
}

/** Tells how much of the time since its start this process spent in its longest turn: a busy machine makes both longer. */
export function startClock(): { longestShare(): number } {
  const start = performance.now()
  let [last, longest] = [start, 0]
  const look = () => {
    const now = performance.now()
    longest = Math.max(longest, now - last)
    last = now
  }
  const timer = setInterval(look, 5)
  onTestFinished(() => clearInterval(timer))
  return {
    longestShare() {
      look()
      return longest / (last - start)
    },
  }
}

/** A connection that is closed with the test. */
export async function open(port: number): Promise<Wire> {
  const wire = await Wire.open(port)
  onTestFinished(() => wire.close())
  return wire
}

export async function ask(wire: Wire, bytes: string): Promise<string> {
  wire.send(bytes)
  return wire.read()
}

export const put = (body: string, how = '10 0 60') => `put ${how} ${body.length}\r\n${body}\r\n`

/** A number from the body of a reply. */
export const stat = (reply: string, key: string) => Number(new RegExp(`^${key}: (\\d+)$`, 'm').exec(reply)?.[1])
