/** The machine as this process sees it: tools, limits, clock, control groups. */

import type { Config } from '../../config.ts'
import { MAX_CONNECTIONS } from '../../http/server.ts'
import { describeOwnGroup } from '../../run/delegation.ts'
import { hasProc } from '../../run/look.ts'
import { isEmbedded, serversOf } from '../broker.ts'
import { EXIT } from '../exit.ts'
import { slotsOf } from '../settings.ts'
import { checkProcessTools, filesNeeded, readLimit, shareFiles } from '../startup.ts'
import { type Finding, makeOk, makeProblem, makeWarning } from './finding.ts'

const TOOLS = 'tools'
const PROCESSES = 'processes'
const FILES = 'files'
const CORE = 'core'
const CLOCK = 'clock'
const CGROUP = 'cgroup'

/** Threads and processes: of the worker with its guard, and of a run that starts a few. */
const OWN_PROCESSES = 64
const PROCESSES_PER_SLOT = 16
/** No clock that is right shows an earlier year: this program is not older. */
const BUILD_YEAR = 2026
/** The other clock is known to a second, and the way there takes time. */
const CLOCK_WARNING_MS = 5_000
/** S3 refuses what is signed at another time (RequestTimeTooSkewed). */
const CLOCK_PROBLEM_MS = 15 * 60_000

export async function checkTools(): Promise<Finding[]> {
  const problems = await checkProcessTools()
  if (problems.length > 0) return problems.map(({ exitCode, message }) => makeProblem(TOOLS, exitCode, message))
  return [makeOk(TOOLS, hasProc ? 'processes of runs are found in /proc' : 'processes of runs are found by ps')]
}

/** @param limits text of /proc/self/limits, if it is not this process's own */
export function checkLimits(config: Config, isRoot = process.geteuid?.() === 0, limits?: string): Finding[] {
  const slots = slotsOf(config)
  const servers = serversOf(config).length
  const files = readLimit('open files', limits)
  const core = readLimit('core file size', limits)
  const processes = readLimit('processes', limits)
  if (files === undefined || core === undefined || processes === undefined)
    return [makeOk(FILES, 'the limits of this process cannot be read here')]
  return [
    checkFiles(slots, servers, files, shareFiles(slots, isEmbedded(config) ? 'both' : 'http', limits, servers).http),
    checkProcesses(slots, processes, isRoot),
    checkCore(core),
  ]
}

function checkFiles(slots: number, servers: number, files: number, clients: number | undefined): Finding {
  const needed = filesNeeded(slots, servers)
  if (files < needed) {
    const what = `${files} open files are too few for ${slots} slots and a few HTTP clients`
    const remedy = `raise the limit to ${needed} at least (ulimit -n, LimitNOFILE), or lower CONCURRENCY`
    return makeProblem(FILES, EXIT.config, `${what}; ${remedy}`)
  }
  return makeOk(
    FILES,
    `${limitText(files)} open files do for ${slots} slots and ${Math.min(clients ?? MAX_CONNECTIONS, MAX_CONNECTIONS)} HTTP clients`,
  )
}

function checkProcesses(slots: number, processes: number, isRoot: boolean): Finding {
  const wanted = OWN_PROCESSES + slots * PROCESSES_PER_SLOT
  if (isRoot || processes >= wanted)
    return makeOk(PROCESSES, `${isRoot ? 'no limit, for this is root' : `${limitText(processes)} may be of this user`}`)
  const what = `this user may have ${processes} processes and threads, which is little for ${slots} slots`
  return makeWarning(PROCESSES, `${what}; raise the limit to ${wanted} (ulimit -u, LimitNPROC)`)
}

function checkCore(bytes: number): Finding {
  if (bytes === 0) return makeOk(CORE, 'no core files are written')
  const what = 'a worker that crashes writes a core file, with the credentials that it knows'
  return makeWarning(CORE, `${what}; forbid it (ulimit -c 0, LimitCORE=0)`)
}

function limitText(limit: number): string {
  return limit === Number.POSITIVE_INFINITY ? 'any number of' : String(limit)
}

/** @param aheadMs of S3's clock before ours; undefined when there is none to compare with */
export function checkClock(now: Date, aheadMs: number | undefined): Finding {
  const time = `it is ${now.toISOString()}`
  const remedy = 'set it, and let NTP keep it (timedatectl set-ntp true)'
  if (now.getUTCFullYear() < BUILD_YEAR)
    return makeProblem(CLOCK, EXIT.config, `${time}, which is before this program was made; ${remedy}`)
  if (aheadMs === undefined) return makeOk(CLOCK, `${time}; there is no other clock to compare with (S3 has one)`)
  const seconds = Math.round(Math.abs(aheadMs) / 1000)
  const differs = `${time}, ${seconds} s ${aheadMs > 0 ? 'behind' : 'ahead of'} S3's clock`
  if (Math.abs(aheadMs) > CLOCK_PROBLEM_MS)
    return makeProblem(CLOCK, EXIT.config, `${differs}, and S3 refuses requests of such a time; ${remedy}`)
  if (Math.abs(aheadMs) > CLOCK_WARNING_MS)
    return makeWarning(CLOCK, `${differs}, and results bear that time; ${remedy}`)
  return makeOk(CLOCK, `${time}, as S3's clock says`)
}

export async function checkGroups(): Promise<{ findings: Finding[]; controllers: readonly string[] }> {
  const group = await describeOwnGroup()
  if ('why' in group) {
    const message = `a worker started like this has no control groups (${group.why}): limits hold for each process of a run`
    return { findings: [makeOk(CGROUP, message)], controllers: [] }
  }
  const message = `a worker started like this has control groups for its runs: ${group.controllers.join(' ')}`
  return { findings: [makeOk(CGROUP, message)], controllers: group.controllers }
}
