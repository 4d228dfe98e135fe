/** Answers in JSON, and the headers that all answers share. */

import { createHash } from 'node:crypto'
import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { isFresh } from './precondition.ts'
import { METHODS, type Refusal, ROUTES } from './route.ts'

const EXPOSED = 'Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Last-Modified, Retry-After'
const REQUESTED = 'Range, If-None-Match, If-Modified-Since, If-Range, Accept, Cache-Control'
const PREFLIGHT_SECONDS = 86_400

/**
 * Sets what stands in every answer. Outputs come from algorithms: a page or drawing among them may show itself, with
 * its own styles, and run nothing.
 */
export function setCommonHeaders(response: ServerResponse): void {
  response.setHeader('Access-Control-Allow-Origin', '*')
  response.setHeader('Access-Control-Expose-Headers', EXPOSED)
  response.setHeader('Cross-Origin-Resource-Policy', 'cross-origin')
  response.setHeader('X-Content-Type-Options', 'nosniff')
  response.setHeader(
    'Content-Security-Policy',
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:",
  )
}

export function sendPreflight(response: ServerResponse): void {
  response.writeHead(204, {
    Allow: METHODS,
    'Access-Control-Allow-Methods': METHODS,
    'Access-Control-Allow-Headers': REQUESTED,
    'Access-Control-Max-Age': PREFLIGHT_SECONDS,
  })
  response.end()
}

/** Sends JSON text that is not kept by any cache, unless `headers` say so. */
export function sendJson(
  request: IncomingMessage,
  response: ServerResponse,
  status: number,
  text: string,
  headers: OutgoingHttpHeaders = {},
): void {
  response.writeHead(status, {
    'Content-Type': 'application/json; charset=utf-8',
    'Content-Length': Buffer.byteLength(text),
    'Cache-Control': 'no-store',
    ...headers,
  })
  response.end(request.method === 'HEAD' ? undefined : text)
}

/** Sends a result or status document, or 304 to a client that has it. */
export function sendDocument(request: IncomingMessage, response: ServerResponse, text: string, modified: Date): void {
  const etag = `"${createHash('sha256').update(text).digest('base64url')}"`
  const headers = { 'Cache-Control': 'no-cache', ETag: etag, 'Last-Modified': modified.toUTCString() }
  if (isFresh(request.headers, { etag, modified })) {
    response.writeHead(304, headers)
    response.end()
    return
  }
  sendJson(request, response, 200, text, headers)
}

export function sendRefusal(request: IncomingMessage, response: ServerResponse, refusal: Refusal): void {
  const { status, error, message, uuid } = refusal
  const extra = request.url === '/' ? { routes: ROUTES } : {}
  const text = `${JSON.stringify({ error, message, ...(uuid === undefined ? {} : { uuid }), ...extra })}\n`
  // A body that nobody reads may follow a method that is not served.
  sendJson(request, response, status, text, status === 405 ? { Allow: METHODS, Connection: 'close' } : {})
}
