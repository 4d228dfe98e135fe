/** The part of fivebeans that queue/beanstalk.ts uses; the package has no types of its own. */
declare module 'fivebeans/lib/client.js' {
  import type { EventEmitter } from 'node:events'
  import type { Socket } from 'node:net'

  /** First argument: null after the expected reply, else the reply's first word. */
  type Callback = (word: string | null, ...args: unknown[]) => void

  interface ResponseHandler {
    /** which replies have a body, and whether it goes through the YAML parser or is passed through as a Buffer */
    RESPONSES_REQUIRING_BODY: Record<string, 'passthrough' | 'yaml'>
  }

  /** What a handler is to the client: it takes what it knows of the bytes that came, and gives the rest back. */
  interface ReplyHandler {
    complete: boolean
    success: boolean
    /** for the callback */
    args: unknown[]
    process(bytes: Buffer): Buffer
    /** called when not all has come */
    reset(): void
  }

  export default class FiveBeansClient extends EventEmitter {
    constructor(host: string, port: number)
    stream: Socket | null
    /** what came and is not handled yet */
    buffer?: Buffer
    handlers: [ResponseHandler | ReplyHandler, Callback][]
    connect(): void
    tryHandlingResponse(): void
    use(tube: string, callback: Callback): void
    put(priority: number, delay: number, ttr: number, body: Buffer, callback: Callback): void
    watch(tube: string, callback: Callback): void
    ignore(tube: string, callback: Callback): void
    reserve_with_timeout(seconds: number, callback: Callback): void
    destroy(ticket: string, callback: Callback): void
    release(ticket: string, priority: number, delay: number, callback: Callback): void
    bury(ticket: string, priority: number, callback: Callback): void
    touch(ticket: string, callback: Callback): void
    stats_job(ticket: string, callback: Callback): void
    stats_tube(tube: string, callback: Callback): void
    stats(callback: Callback): void
  }
}
