/** Answers in JSON, and the headers that all answers share. */

import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { METHODS, type Refusal, ROUTES } from './route.ts'

const EXPOSED = 'Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Last-Modified, Retry-After'
const REQUESTED = 'Range, If-None-Match, If-Modified-Since, If-Range, Accept, Cache-Control'
const PREFLIGHT_SECONDS = 86_400

/**
 * What stands in every answer. Outputs come from algorithms: a page or drawing among them may show itself, with its own
 * styles, and run nothing. Handed to `writeHead` whole: set one by one they were a sixth of the time of an answer.
 */
export const COMMON_HEADERS = {
  'Access-Control-Allow-Origin': '*',
  'Access-Control-Expose-Headers': EXPOSED,
  'Cross-Origin-Resource-Policy': 'cross-origin',
  'X-Content-Type-Options': 'nosniff',
  'Content-Security-Policy': "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:",
}

export const JSON_TYPE = 'application/json; charset=utf-8'

export function sendPreflight(response: ServerResponse): void {
  response.writeHead(204, {
    ...COMMON_HEADERS,
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
    ...COMMON_HEADERS,
    'Content-Type': JSON_TYPE,
    'Content-Length': Buffer.byteLength(text),
    'Cache-Control': 'no-store',
    ...headers,
  })
  response.end(request.method === 'HEAD' ? undefined : text)
}

export function sendRefusal(request: IncomingMessage, response: ServerResponse, refusal: Refusal): void {
  const { status, error, message, uuid } = refusal
  const extra = request.url === '/' ? { routes: ROUTES } : {}
  const text = `${JSON.stringify({ error, message, ...(uuid === undefined ? {} : { uuid }), ...extra })}\n`
  // A body that nobody reads may follow a method that is not served.
  sendJson(request, response, status, text, status === 405 ? { Allow: METHODS, Connection: 'close' } : {})
}
