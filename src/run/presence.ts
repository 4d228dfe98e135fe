/**
 * Whether the process that wrote something is still there.
 *
 * A number alone does not tell: numbers are given anew, start over with each boot and in each container, and a shared
 * folder shows those of other machines. So a presence names machine, boot, pid namespace, number and start. Where these
 * do not suffice to be sure, the answer is `unknown`, and who asks must leave alone what is that process's.
 *
 * The brief form, `<pid>-<start, base 36>-<hashes of machine, boot and namespace>`, says the same and fits into a file
 * name: what is written in a file, a run may change; the name under which a worker is known in the tracker it may not.
 */

import { createHash } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { hostname } from 'node:os'
import { hasProc, isZombie, readProcess } from './look.ts'

/** Text that identifies this very process, for `isPresent`. */
export function ownPresence(): string {
  const ticks = hasProc ? readProcess(process.pid)?.startTicks : undefined
  const place = readPlace()
  if (ticks === undefined || place === undefined) return `host ${hostname()} ${process.pid}`
  return `linux ${place.machine} ${place.boot} ${place.namespace} ${process.pid} ${ticks}`
}

const BRIEF = /^(\d+)-([0-9a-z]+)-([0-9a-f]{6})([0-9a-f]{6})([0-9a-f]{4})$/

/** The brief form of a presence; undefined where there is no /proc, and number and start do not tell enough. */
export function makeBrief(presence: string): string | undefined {
  const [kind, machine = '', boot = '', namespace = '', pid, ticks] = presence.split(' ')
  if (kind !== 'linux') return undefined
  const { machineHash, bootHash, namespaceHash } = hashPlace({ machine, boot, namespace })
  return `${pid}-${Number(ticks).toString(36)}-${machineHash}${bootHash}${namespaceHash}`
}

function hashPlace({ machine, boot, namespace }: Place) {
  const hash = (text: string, digits: number) => createHash('sha256').update(text).digest('hex').slice(0, digits)
  return { machineHash: hash(machine, 6), bootHash: hash(boot, 6), namespaceHash: hash(namespace, 4) }
}

/** What a presence says, as far as this machine and boot can use it. */
export interface LocalPresence {
  readonly pid: number
  readonly startTicks: number
}

/** The process's number and start when it lives or lived in this boot and pid namespace, else undefined. */
export function asLocal(presence: string): LocalPresence | undefined {
  const brief = BRIEF.exec(presence)
  if (brief !== null) return briefAsLocal(brief)
  const [kind, , boot, namespace, pid, ticks] = presence.split(' ')
  const place = readPlace()
  if (kind !== 'linux' || place === undefined || boot !== place.boot || namespace !== place.namespace) return undefined
  const local = { pid: Number(pid), startTicks: Number(ticks) }
  return isCount(local.pid) && isCount(local.startTicks) ? local : undefined
}

function briefAsLocal([, pid, ticks = '', , boot, namespace]: RegExpExecArray): LocalPresence | undefined {
  const place = readPlace()
  if (place === undefined) return undefined
  const { bootHash, namespaceHash } = hashPlace(place)
  const local = { pid: Number(pid), startTicks: Number.parseInt(ticks, 36) }
  return boot === bootHash && namespace === namespaceHash && isCount(local.pid) && isCount(local.startTicks)
    ? local
    : undefined
}

function isCount(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0
}

/** @param presence what `ownPresence` or `makeBrief` said, here or elsewhere; any other text is `unknown` */
export function isPresent(presence: string): 'alive' | 'dead' | 'unknown' {
  const local = asLocal(presence)
  if (local !== undefined) return lookUp(local)
  const brief = BRIEF.exec(presence)
  if (brief !== null) return wasBriefBeforeBoot(brief) ? 'dead' : 'unknown'
  const words = presence.split(' ')
  if (words[0] === 'linux' && words.length === 6) return wasBeforeBoot(words) ? 'dead' : 'unknown'
  const [kind, host, pid, ...rest] = words
  if (kind !== 'host' || host !== hostname() || rest.length > 0 || !isCount(Number(pid))) return 'unknown'
  // Its number may be another's by now; without /proc nobody can tell.
  return isNumberFree(Number(pid)) ? 'dead' : 'unknown'
}

function lookUp({ pid, startTicks }: LocalPresence): 'alive' | 'dead' | 'unknown' {
  const now = readProcess(pid)
  if (now !== undefined) return now.startTicks === startTicks && !isZombie(now) ? 'alive' : 'dead'
  // With hidepid, /proc does not show other users' processes; and a descriptor may be wanting.
  return isNumberFree(pid) ? 'dead' : 'unknown'
}

/** A machine without an id of its own cannot be told from others of that name. */
function wasBeforeBoot([, machine, boot]: readonly string[]): boolean {
  const place = readPlace()
  return place !== undefined && boot !== place.boot && machine === place.machine && !machine.startsWith('-/')
}

function wasBriefBeforeBoot([, , , machine, boot]: RegExpExecArray): boolean {
  const place = readPlace()
  if (place === undefined || place.machine.startsWith('-/')) return false
  const { machineHash, bootHash } = hashPlace(place)
  return machine === machineHash && boot !== bootHash
}

/** No process has this number now, in our pid namespace. */
export function isNumberFree(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return false
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH'
  }
}

interface Place {
  /** machine id or `-`, and host name: images and clones share an id, but rarely both */
  readonly machine: string
  readonly boot: string
  readonly namespace: string
}

function readPlace(): Place | undefined {
  try {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
    const namespace = readlinkSync('/proc/self/ns/pid')
    return { machine: `${readMachineId()}/${hostname().replace(/\s/g, '_')}`, boot, namespace }
  } catch {
    return undefined
  }
}

function readMachineId(): string {
  try {
    return /^[0-9a-f]{32}$/.exec(readFileSync('/etc/machine-id', 'latin1').trim())?.[0] ?? '-'
  } catch {
    return '-'
  }
}
