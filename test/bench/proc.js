/** What the kernel tells of a process, where there is /proc; undefined elsewhere. */

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'

const HAS_PROC = existsSync('/proc/self/stat')
const TICKS_PER_SECOND = HAS_PROC ? Number(spawnSync('getconf', ['CLK_TCK']).stdout ?? 0) || 100 : 100

function readStat(pid) {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    // The name before it is in parentheses, and may hold some.
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return { parent: Number(fields[1]), ticks: fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0) }
  } catch {
    return undefined
  }
}

/**
 * Processor time of a process, of all that live below it, and of all ended ones that these waited for, in seconds.
 * A launcher counts with what it started.
 */
export function cpuSecondsOf(pid) {
  if (!HAS_PROC) return undefined
  const stats = new Map()
  for (const name of readdirSync('/proc')) {
    const stat = /^\d+$/.test(name) ? readStat(name) : undefined
    if (stat !== undefined) stats.set(Number(name), stat)
  }
  const isBelow = (each) => {
    for (let at = each; at > 1; at = stats.get(at)?.parent ?? 0) if (at === pid) return true
    return false
  }
  let ticks = 0
  for (const [each, stat] of stats) if (isBelow(each)) ticks += stat.ticks
  return ticks / TICKS_PER_SECOND
}

/** `VmRSS` or `VmHWM` of a process, in MB. */
export function memoryMb(pid, key) {
  if (!HAS_PROC) return undefined
  const kib = new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return kib === undefined ? undefined : Number(kib) / 1024
}
