/** What a request's conditional headers and Range come to. Pure; RFC 9110, sections 13 and 14. */

import type { IncomingHttpHeaders } from 'node:http'

/** What is known about a representation: both stand in the answer as they are. */
export interface Validators {
  /** strong, with its quotes */
  readonly etag: string
  readonly modified: Date
}

/** First and last byte, both included. */
export interface ByteRange {
  readonly start: number
  readonly end: number
}

/** Tells whether the client has this representation already, so that 304 is the answer. */
export function isFresh(headers: IncomingHttpHeaders, { etag, modified }: Validators): boolean {
  const ifNoneMatch = headers['if-none-match']
  if (ifNoneMatch !== undefined) {
    return ifNoneMatch.split(',').some((entry) => {
      const tag = entry.trim()
      return tag === '*' || tag === etag || tag === `W/${etag}`
    })
  }
  const since = Date.parse(headers['if-modified-since'] ?? '')
  return wholeSeconds(modified.getTime()) <= since
}

/**
 * Decides which part of a file is answered: a range, `unsatisfiable` (416), or undefined for all of it. A server may
 * ignore a Range; several ranges at once, other units and nonsense are ignored.
 */
export function chooseRange(
  headers: IncomingHttpHeaders,
  validators: Validators,
  bytes: number,
): ByteRange | 'unsatisfiable' | undefined {
  if (headers.range === undefined || bytes === 0 || !isStillThat(headers['if-range']?.toString(), validators))
    return undefined
  const match = /^bytes=[ \t]*(\d*)-(\d*)[ \t]*$/i.exec(headers.range)
  if (!match) return undefined
  const [, first = '', last = ''] = match
  if (first === '' && last === '') return undefined
  if (first === '') {
    const length = Number(last)
    return length === 0 ? 'unsatisfiable' : { start: Math.max(0, bytes - length), end: bytes - 1 }
  }
  const start = Number(first)
  const end = last === '' ? bytes - 1 : Math.min(Number(last), bytes - 1)
  if (last !== '' && Number(last) < start) return undefined
  return start >= bytes ? 'unsatisfiable' : { start, end }
}

/** If-Range: the part is only of use to a client whose other parts are of the same representation. */
function isStillThat(ifRange: string | undefined, { etag, modified }: Validators): boolean {
  if (ifRange === undefined) return true
  if (ifRange.trimStart().startsWith('"') || ifRange.startsWith('W/')) return ifRange.trim() === etag
  return Date.parse(ifRange) === wholeSeconds(modified.getTime())
}

/** HTTP dates have no fractions. */
function wholeSeconds(ms: number): number {
  return Math.floor(ms / 1000) * 1000
}
