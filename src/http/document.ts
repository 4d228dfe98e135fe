/**
 * Result and status documents, ready to be answered. Small ones that were read are held in memory, and given out only
 * while the store, which is asked for each request, says that their file is the very same: a question to the disk costs
 * an answer half of its time, reading the file anew would be six.
 */

import { createHash } from 'node:crypto'
import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { StoredFile } from '../store/store.ts'
import { COMMON_HEADERS, JSON_TYPE } from './answer.ts'
import { isFresh, type Validators } from './precondition.ts'

export interface Document extends Validators {
  readonly text: string
  /** all, for 200 */
  readonly headers: OutgoingHttpHeaders
}

export function makeDocument(text: string, modified: Date): Document {
  const etag = `"${createHash('sha256').update(text).digest('base64url')}"`
  const headers = {
    ...headersOf({ etag, modified }),
    'Content-Type': JSON_TYPE,
    'Content-Length': Buffer.byteLength(text),
  }
  return { text, etag, modified, headers }
}

/** Sends it, or 304 to a client that has it. */
export function sendDocument(request: IncomingMessage, response: ServerResponse, document: Document): void {
  if (isFresh(request.headers, document)) {
    response.writeHead(304, headersOf(document)).end()
    return
  }
  response.writeHead(200, document.headers).end(request.method === 'HEAD' ? undefined : document.text)
}

function headersOf({ etag, modified }: Validators): OutgoingHttpHeaders {
  return { ...COMMON_HEADERS, 'Cache-Control': 'no-cache', ETag: etag, 'Last-Modified': modified.toUTCString() }
}

/** All that is held, and the most that one document may have: a few large ones shall not drive out all others. */
const SHELF_BYTES = 16 * 2 ** 20
const LARGEST_BYTES = 64 * 1024
/** what a document takes besides its text, roughly */
const OVERHEAD_BYTES = 1024

interface Held {
  /** as it was found before the document was read, so that a change in between shows */
  readonly file: StoredFile
  readonly document: Document
  readonly bytes: number
}

/** What was read last, in bounds. */
export class Shelf {
  /** oldest first */
  readonly #held = new Map<string, Held>()
  readonly #limitBytes: number
  #bytes = 0

  constructor(limitBytes = SHELF_BYTES) {
    this.#limitBytes = limitBytes
  }

  get(name: string): Held | undefined {
    return this.#held.get(name)
  }

  put(name: string, file: StoredFile, document: Document): void {
    this.#drop(name)
    if (file.version === undefined || file.bytes > LARGEST_BYTES) return
    // A character takes up to two bytes.
    const held = { file, document, bytes: document.text.length * 2 + OVERHEAD_BYTES }
    this.#held.set(name, held)
    this.#bytes += held.bytes
    for (const oldest of this.#held.keys()) {
      if (this.#bytes <= this.#limitBytes) break
      this.#drop(oldest)
    }
  }

  #drop(name: string): void {
    this.#bytes -= this.#held.get(name)?.bytes ?? 0
    this.#held.delete(name)
  }
}
