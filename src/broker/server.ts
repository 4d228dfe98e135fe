/**
 * The sockets. Bytes come in, commands change the tubes, replies are kept until the turn of the event loop is over:
 * then the journal is written, and only after it the replies go out. So all connections share one write to the file,
 * and with `fsync: each` one sync.
 *
 * A turn ends after some milliseconds, whatever there is left to do: the process has other things to do, too. Who was
 * not served to the end goes on in the next one.
 *
 * A connection is read no further while it waits for a job, while its client does not take the replies, or while the
 * disk does not take the journal. A client that closes its side still gets the replies to all that it sent.
 */

import { createServer, type Server as NetServer, type Socket } from 'node:net'
import { BrokerError } from './broker-error.ts'
import { execute, formatJob, type Scene } from './commands.ts'
import type { Journal } from './journal.ts'
import { parseCommand, Reader, TOO_LONG, UNTERMINATED } from './protocol.ts'
import type { Client } from './tube.ts'
import type { Reserved, Tubes } from './tubes.ts'

/** A client that leaves more than this unread is not served until it reads. */
const UNREAD_BYTES = 1 << 18
/** More than this is not taken from a client before what it sent is worked through. */
const UNSERVED_BYTES = 1 << 20
const TURN_MS = 20
const LONGEST_SLEEP_MS = 3_600_000
/** for a client to take its last replies */
const FAREWELL_MS = 1000
/** until the journal is tried again that the disk did not take */
const RETRY_MS = 200

export interface ServerOptions {
  /** Milliseconds; goes on evenly and does not go back. */
  readonly now: () => number
  /** Replies wait for a sync of the journal. */
  readonly syncsEach: boolean
  /** No job is taken that would make them all larger than this. */
  readonly maxMemoryBytes: number
  /** More are hung up on at once; undefined: as many as come. */
  readonly maxConnections: number | undefined
}

type Mode =
  | { kind: 'command' }
  | { kind: 'body'; bytes: number }
  | { kind: 'skip'; bytes: number; reply: string }
  | { kind: 'waiting' }
  | { kind: 'closing' }

const COMMAND: Mode = { kind: 'command' }
const WAITING: Mode = { kind: 'waiting' }
const CLOSING: Mode = { kind: 'closing' }

interface Connection {
  readonly socket: Socket
  readonly client: Client
  readonly reader: Reader
  mode: Mode
  /** replies of this turn */
  replies: string
  hasHungUp: boolean
  isGone: boolean
}

export class Server {
  readonly #scene: Scene
  readonly #tubes: Tubes
  readonly #journal: Journal | undefined
  readonly #options: ServerOptions
  readonly #server: NetServer
  readonly #connections = new Map<Client, Connection>()
  /** also of clients that are forgotten, but have not taken their last replies */
  readonly #sockets = new Set<Socket>()
  /** with replies of this turn */
  readonly #answered = new Set<Connection>()
  /** that may go on */
  readonly #resumed = new Set<Connection>()
  #active: Connection | undefined
  #isClosed = false
  #isFlushPlanned = false
  #turnEndsAt = 0
  /**
   * The journal is being read yet, a sync is under way, or the disk does not take the journal: nothing is answered, and
   * then nothing done either.
   */
  #isHeld = true
  #timer: NodeJS.Timeout | undefined
  #timerAt = Number.POSITIVE_INFINITY
  isDraining = false

  constructor(scene: Scene, journal: Journal | undefined, options: ServerOptions) {
    this.#scene = scene
    this.#tubes = scene.tubes
    this.#journal = journal
    this.#options = options
    this.#server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => this.#accept(socket))
    if (options.maxConnections !== undefined) this.#server.maxConnections = options.maxConnections
  }

  /** Who connects waits for `begin`. @returns the port. @throws BrokerError `address` */
  listen(host: string, port: number): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', (cause: NodeJS.ErrnoException) => {
        const reason = cause.code === 'EADDRINUSE' ? 'something listens there already' : cause.message
        reject(new BrokerError('address', `the broker cannot listen on ${host}:${port} (${reason})`, cause))
      })
      this.#server.listen(port, host, () => {
        // One that cannot be accepted (too many open files) is no reason to end.
        this.#server.on('error', () => undefined)
        const address = this.#server.address()
        resolve(typeof address === 'object' && address !== null ? address.port : port)
      })
    })
  }

  /** All that is kept is known now: answers. */
  begin(): void {
    this.#isHeld = false
    this.#planFlush()
  }

  /** Answers what is answered already, then ends all connections. */
  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve))
    this.#flush()
    this.#isClosed = true
    clearTimeout(this.#timer)
    for (const socket of this.#sockets) {
      socket.pause()
      if (this.#isHeld) socket.destroy()
      else socket.destroySoon()
    }
    const impatience = setTimeout(() => {
      for (const socket of this.#sockets) socket.destroy()
    }, FAREWELL_MS)
    await closed
    clearTimeout(impatience)
  }

  /** What a client that waits, or has just asked, is told. */
  answer(client: Client, outcome: Reserved): void {
    const connection = this.#connections.get(client)
    if (connection === undefined || connection.mode.kind === 'closing') return
    connection.mode = COMMAND
    this.#reply(connection, typeof outcome === 'string' ? `${outcome}\r\n` : formatJob('RESERVED', outcome))
    if (connection !== this.#active) this.#resumed.add(connection)
  }

  #accept(socket: Socket): void {
    const client = this.#tubes.connect()
    const reader = new Reader()
    const connection: Connection = {
      socket,
      client,
      reader,
      mode: COMMAND,
      replies: '',
      hasHungUp: false,
      isGone: false,
    }
    this.#connections.set(client, connection)
    this.#sockets.add(socket)
    socket.on('data', (bytes) => {
      reader.add(bytes as Buffer)
      this.#serve(connection)
    })
    socket.on('drain', () => this.#serve(connection))
    socket.on('end', () => {
      connection.hasHungUp = true
      this.#tubes.stopWaiting(client)
      this.#serve(connection)
    })
    // Comes before close, which does what is to be done.
    socket.on('error', () => undefined)
    socket.on('close', () => {
      this.#sockets.delete(socket)
      this.#forget(connection)
      this.#answered.delete(connection)
    })
  }

  #forget(connection: Connection): void {
    if (connection.isGone) return
    connection.isGone = true
    connection.mode = CLOSING
    this.#connections.delete(connection.client)
    this.#resumed.delete(connection)
    this.#tubes.disconnect(connection.client, this.#options.now())
    this.#planFlush()
  }

  /** Works through what has come, as far as it goes now. */
  #serve(connection: Connection): void {
    const { socket, reader } = connection
    if (this.#isHeld) {
      this.#resumed.add(connection)
    } else {
      this.#planFlush()
      this.#active = connection
      while (connection.replies.length + socket.writableLength <= UNREAD_BYTES && this.#step(connection)) {
        if (this.#options.now() < this.#turnEndsAt) continue
        this.#resumed.add(connection)
        break
      }
      this.#active = undefined
    }
    if (reader.pending > UNSERVED_BYTES) socket.pause()
    else if (socket.isPaused()) socket.resume()
  }

  /** @returns whether there may be more to do */
  #step(connection: Connection): boolean {
    const { reader, mode } = connection
    switch (mode.kind) {
      case 'command': {
        const line = reader.readLine()
        if (line === undefined) return this.#starve(connection)
        if (line === TOO_LONG) this.#reply(connection, 'BAD_FORMAT\r\n')
        else this.#obey(connection, line)
        return true
      }
      case 'body': {
        const body = reader.readBody(mode.bytes)
        if (body === undefined) return this.#starve(connection)
        connection.mode = COMMAND
        this.#reply(connection, this.#finishPut(connection.client, body))
        return true
      }
      case 'skip':
        mode.bytes = reader.skip(mode.bytes)
        if (mode.bytes > 0) return this.#starve(connection)
        connection.mode = COMMAND
        this.#reply(connection, mode.reply)
        return true
      case 'waiting':
      case 'closing':
        return false
      default:
        throw new Error(`a connection is ${(mode satisfies never as Mode).kind}`)
    }
  }

  /** All that has come is done; who has hung up sends no more. */
  #starve(connection: Connection): false {
    if (connection.hasHungUp) this.#end(connection)
    return false
  }

  #obey(connection: Connection, line: string): void {
    const { client } = connection
    const now = this.#options.now()
    this.#tubes.tick(now)
    const command = parseCommand(line)
    // Before the command: the answer may come at once, and says that it waits no more.
    if (command.verb === 'reserve' || command.verb === 'reserve-with-timeout') connection.mode = WAITING
    const outcome = execute(this.#scene, client, command, now)
    if (typeof outcome === 'string') {
      this.#reply(connection, outcome)
      return
    }
    switch (outcome.do) {
      case 'wait':
        if (connection.hasHungUp) this.#tubes.stopWaiting(client)
        return
      case 'readBody':
        connection.mode = { kind: 'body', bytes: outcome.bytes }
        return
      case 'skip':
        connection.mode = { kind: 'skip', bytes: outcome.bytes, reply: outcome.reply }
        return
      case 'close':
        this.#end(connection)
    }
  }

  #finishPut(client: Client, body: string | typeof UNTERMINATED): string {
    const now = this.#options.now()
    if (body === UNTERMINATED || this.isDraining || !this.#hasRoomFor(body.length, now)) {
      this.#tubes.abandonPut(client)
      if (body === UNTERMINATED) return 'EXPECTED_CRLF\r\n'
      return this.isDraining ? 'DRAINING\r\n' : 'OUT_OF_MEMORY\r\n'
    }
    this.#tubes.tick(now)
    return `INSERTED ${this.#tubes.finishPut(client, body, now).id}\r\n`
  }

  #hasRoomFor(bytes: number, now: number): boolean {
    if (this.#tubes.memoryBytes + bytes > this.#options.maxMemoryBytes) return false
    return this.#journal?.takesPut(bytes, now) ?? true
  }

  #reply(connection: Connection, text: string): void {
    connection.replies += text
    this.#answered.add(connection)
  }

  /** Its jobs are free at once; the socket closes when the replies are sent. */
  #end(connection: Connection): void {
    const { socket } = connection
    this.#forget(connection)
    if (connection.replies === '') socket.destroySoon()
    else this.#answered.add(connection)
  }

  // The end of a turn

  #planFlush(): void {
    if (this.#isFlushPlanned || this.#isClosed) return
    this.#isFlushPlanned = true
    this.#turnEndsAt = this.#options.now() + TURN_MS
    setImmediate(() => this.#flush())
  }

  #flush(): void {
    this.#isFlushPlanned = false
    if (this.#isHeld || this.#isClosed) return
    this.#tubes.tick(this.#options.now())
    this.#resume()
    this.#commit()
    this.#arm()
  }

  #resume(): void {
    const resumed = [...this.#resumed]
    this.#resumed.clear()
    for (const connection of resumed) this.#serve(connection)
  }

  #commit(): void {
    const journal = this.#journal
    this.#isHeld = false
    if (journal?.write() === false) {
      this.#retry()
    } else if (journal?.isDirty && this.#options.syncsEach) {
      this.#isHeld = true
      journal.sync((error) => {
        if (error !== null) {
          this.#retry()
          return
        }
        this.#isHeld = false
        this.#send()
        this.#planFlush()
      })
    } else {
      this.#send()
    }
  }

  #retry(): void {
    this.#isHeld = true
    setTimeout(() => {
      // Its descriptor may be another file's by now.
      if (this.#isClosed) return
      this.#commit()
      // What became due meanwhile has rung in vain.
      this.#planFlush()
    }, RETRY_MS)
  }

  #send(): void {
    for (const connection of this.#answered) {
      const { socket, replies } = connection
      connection.replies = ''
      if (replies !== '') socket.write(replies, 'latin1')
      if (connection.mode.kind === 'closing') {
        socket.destroySoon()
      } else {
        // Its replies, not its client, may have been what it was stopped for.
        if (connection.reader.pending > 0 && socket.writableLength <= UNREAD_BYTES) this.#resumed.add(connection)
      }
    }
    this.#answered.clear()
    if (this.#resumed.size > 0) this.#planFlush()
  }

  #arm(): void {
    const at = this.#tubes.wakeAt
    if (at >= this.#timerAt) return
    clearTimeout(this.#timer)
    this.#timerAt = at
    const sleepMs = Math.min(Math.max(0, at - this.#options.now()), LONGEST_SLEEP_MS)
    this.#timer = setTimeout(() => {
      this.#timerAt = Number.POSITIVE_INFINITY
      this.#flush()
    }, Math.ceil(sleepMs))
  }
}
