/** The servers that a queue may have: how they are named, and which of them a job goes to. Pure. */

import { isIPv6 as matchesIPv6 } from 'node:net'
import { describe } from '../job/package.ts'

/** One broker. */
export interface Server {
  readonly host: string
  readonly port: number
  /** `host:port`, with an IPv6 address in brackets */
  readonly name: string
  /** for openQueue */
  readonly url: string
}

/** Stands for the broker of this machine, which a worker is; it goes with no other server. */
export const EMBEDDED = 'embedded'
const EMBEDDED_WITH_PORT = /^embedded:/
const HOST = /^[A-Za-z0-9._-]{1,253}$/
const MOST_SERVERS = 64

/**
 * What stands for one server or several in a configuration: a text with `host`, `host:port`, `[IPv6]:port` or an IPv6
 * address, or more of them between commas or blanks; or a list of such texts.
 * @returns one text as it is, or a list of at least two
 * @throws RangeError that tells what is wrong with it
 */
export function parseServers(value: unknown): string | readonly string[] {
  const texts = typeof value === 'string' ? value.trim().split(/\s*,\s*|\s+/) : value
  if (!Array.isArray(texts)) throw new RangeError('it is neither a text nor a list')
  if (texts.length === 0 || texts.length > MOST_SERVERS)
    throw new RangeError(`there are ${texts.length} of them, and 1 to ${MOST_SERVERS} are taken`)
  for (const text of texts) parseServer(text)
  if (texts.length === 1) return texts[0] as string
  if (texts.includes(EMBEDDED)) throw new RangeError(`${EMBEDDED} is the broker of this machine and goes with no other`)
  return texts as string[]
}

function parseServer(text: unknown): { host: string; port: number | undefined } {
  const where = describe(text)
  if (typeof text !== 'string') throw new RangeError(`${where} is no text: put each into quotes`)
  if (text === '') throw new RangeError('one of them is empty')
  if (EMBEDDED_WITH_PORT.test(text)) throw new RangeError(`${EMBEDDED} has its port in BEANSTALK_PORT`)
  if (isIPv6(text)) return { host: text, port: undefined }
  const [, address, port] = /^\[([^[\]]*)\](?::(.*))?$/.exec(text) ?? []
  if (address !== undefined) {
    if (!isIPv6(address)) throw new RangeError(`${where} has no IPv6 address in its brackets`)
    return { host: address, port: parsePort(port, where) }
  }
  const [host = '', own, ...rest] = text.split(':')
  if (rest.length > 0) throw new RangeError(`${where} is no IPv6 address; with a port one is written [::1]:11300`)
  if (!HOST.test(host)) throw new RangeError(`${where} has no host name or address`)
  return { host, port: parsePort(own, where) }
}

/** Node's own is one large regular expression: to compile it takes longer than to put a job. */
function isIPv6(text: string): boolean {
  return text.includes(':') && matchesIPv6(text)
}

function parsePort(text: string | undefined, where: string): number | undefined {
  if (text === undefined) return undefined
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0
  if (port < 1 || port > 65_535) throw new RangeError(`${where} has no port from 1 to 65535 behind its colon`)
  return port
}

/** @param value as parseServers returned it */
export function makeServers(value: string | readonly string[], defaultPort: number): readonly Server[] {
  return [value].flat().map((text) => {
    const { host, port = defaultPort } = parseServer(text)
    const name = `${host.includes(':') ? `[${host}]` : host}:${port}`
    return { host, port, name, url: `beanstalk://${name}` }
  })
}

/** The first that stands in the list before, if only in another spelling. */
export function findDouble(servers: readonly Server[]): Server | undefined {
  // A URL has one spelling for each IPv6 address.
  const spellings = servers.map(({ name }) =>
    URL.canParse(`http://${name}`) ? new URL(`http://${name}`).host : name.toLowerCase(),
  )
  return servers.find((_, i) => spellings.indexOf(spellings[i] as string) < i)
}

/**
 * The servers in the order in which a job is offered to them, by rendezvous hashing: each server weighs each key for
 * itself. So every producer that knows the same servers chooses alike, the jobs of one that fails spread over all others,
 * and one that is added takes its share from each and moves no other job.
 * @param key the uuid of the job
 */
export function rankServers<T extends { readonly name: string }>(key: string, servers: readonly T[]): readonly T[] {
  return servers
    .map((server) => ({ server, weight: weigh(`${key} ${server.name.toLowerCase()}`) }))
    .sort((a, b) => b.weight - a.weight || (a.server.name < b.server.name ? -1 : 1))
    .map(({ server }) => server)
}

/** FNV-1a, and the finalizer of MurmurHash3: a change of one character changes every bit half the time. */
function weigh(text: string): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}
