/** What a request asks for. Pure: a target becomes a route or a refusal, and no path leaves this file. */

import { describe, isUuid } from '../job/package.ts'

/** A name of 255 bytes, each written as %XX, with a uuid before it and a short query behind. */
const MAX_TARGET_LENGTH = 2048

export const METHODS = 'GET, HEAD, OPTIONS'

export const ROUTES: readonly string[] = [
  '/<uuid>',
  '/<uuid>/result.json',
  '/<uuid>/status.json',
  '/<uuid>/<file>',
  '/healthz',
]

export type Route =
  | { readonly kind: 'result'; readonly uuid: string }
  | { readonly kind: 'status'; readonly uuid: string }
  | { readonly kind: 'file'; readonly uuid: string; readonly name: string }
  | { readonly kind: 'health' }
  | { readonly kind: 'preflight' }
  | Refusal

/** An answer that says why there is none. */
export interface Refusal {
  readonly kind: 'refusal'
  readonly status: number
  readonly error: string
  readonly message: string
  readonly uuid?: string
}

export function makeRefusal(status: number, error: string, message: string, uuid?: string): Refusal {
  return { kind: 'refusal', status, error, message, ...(uuid === undefined ? {} : { uuid }) }
}

/** Reads the request line. The target is taken as it was sent: nothing resolves dots in it. */
export function makeRoute(method: string, target: string): Route {
  if (method === 'OPTIONS') return { kind: 'preflight' }
  if (method !== 'GET' && method !== 'HEAD') {
    return makeRefusal(405, 'method_not_allowed', `${describe(method)} is not served here; use ${METHODS}`)
  }
  if (target.length > MAX_TARGET_LENGTH) {
    const message = `the URL has ${target.length} characters; at most ${MAX_TARGET_LENGTH} are taken`
    return makeRefusal(414, 'uri_too_long', message)
  }
  if (!target.startsWith('/')) {
    return makeRefusal(400, 'bad_request', `the path must begin with a slash; it is ${excerpt(target)}`)
  }
  const segments = decodeSegments(target)
  if (!segments) {
    return makeRefusal(400, 'bad_request', `the path is not well formed (percent-encoded UTF-8): ${excerpt(target)}`)
  }
  return chooseRoute(segments)
}

/** Undefined for broken percent-encoding, and for what can only be a trick: an encoded slash or NUL, `.` or `..`. */
function decodeSegments(target: string): string[] | undefined {
  const path = target.replace(/[?#].*$/s, '').slice(1)
  try {
    const segments = path.split('/').map(decodeURIComponent)
    return segments.some((segment) => /[/\u0000]|^\.{1,2}$/.test(segment)) ? undefined : segments
  } catch {
    return undefined
  }
}

function chooseRoute([uuid = '', name = '', ...rest]: string[]): Route {
  if (uuid === 'healthz' && name === '' && rest.length === 0) return { kind: 'health' }
  if (!isUuid(uuid)) return makeRefusal(404, 'not_found', uuidHint(uuid))
  if (rest.length > 0) {
    return makeRefusal(404, 'not_found', `a job has no folders; use one of ${ROUTES.join(' ')}`, uuid)
  }
  if (name === '' || name === 'result.json') return { kind: 'result', uuid }
  if (name === 'status.json') return { kind: 'status', uuid }
  return { kind: 'file', uuid, name }
}

function uuidHint(segment: string): string {
  const plain = segment.replaceAll('-', '').toLowerCase()
  if (isUuid(plain)) return `a uuid is written as 32 lower-case hexadecimal digits here: /${plain}`
  return `there is nothing at /${excerpt(segment)}; use one of ${ROUTES.join(' ')}`
}

/** What came, harmless wherever the message is shown. */
function excerpt(text: string): string {
  const clean = text.replace(/[^\w./%:~-]+/g, '?')
  return clean.length <= 60 ? clean : `${clean.slice(0, 60)}...`
}
