/** The bodies of stats, stats-job, stats-tube and the lists: beanstalkd's keys in beanstalkd's order. */

import { hostname, machine, version } from 'node:os'
import type { Job } from './job.ts'
import type { Verb } from './protocol.ts'
import type { Tube } from './tube.ts'
import type { Tubes } from './tubes.ts'

/** What speaks here is not beanstalkd, but answers as this one does. */
export const VERSION = '1.12+qworker'

/** What the statistics tell that the tubes do not know. */
export interface About {
  readonly commands: Readonly<Record<Verb, number>>
  readonly maxJobBytes: number
  readonly startedAt: number
  readonly isDraining: boolean
  /** 16 hex digits, new with each start */
  readonly id: string
  readonly journal: { oldest: number; current: number; migrated: number; written: number; segmentBytes: number }
}

const COUNTED: readonly Verb[] = [
  'put',
  'peek',
  'peek-ready',
  'peek-delayed',
  'peek-buried',
  'reserve',
  'reserve-with-timeout',
  'delete',
  'release',
  'use',
  'watch',
  'ignore',
  'bury',
  'kick',
  'touch',
  'stats',
  'stats-job',
  'stats-tube',
  'list-tubes',
  'list-tube-used',
  'list-tubes-watched',
  'pause-tube',
]

type Pairs = readonly (readonly [key: string, value: string | number])[]

function formatPairs(pairs: Pairs): string {
  return `---\n${pairs.map(([key, value]) => `${key}: ${value}\n`).join('')}`
}

export function formatNames(tubes: readonly Tube[]): string {
  return `---\n${tubes.map(({ name }) => `- ${name}\n`).join('')}`
}

export function formatStats(tubes: Tubes, about: About, now: number): string {
  const { counts } = tubes
  const { userCPUTime, systemCPUTime } = process.resourceUsage()
  return formatPairs([
    ['current-jobs-urgent', counts.urgent],
    ['current-jobs-ready', counts.ready],
    ['current-jobs-reserved', counts.reserved],
    ['current-jobs-delayed', counts.delayed],
    ['current-jobs-buried', counts.buried],
    ...COUNTED.map((verb) => [`cmd-${verb}`, about.commands[verb]] as const),
    ['job-timeouts', counts.timeouts],
    ['total-jobs', counts.totalJobs],
    ['max-job-size', about.maxJobBytes],
    ['current-tubes', tubes.list.length],
    ['current-connections', counts.clients],
    ['current-producers', counts.producers],
    ['current-workers', counts.workers],
    ['current-waiting', counts.waiting],
    ['total-connections', counts.totalClients],
    ['pid', process.pid],
    ['version', `"${VERSION}"`],
    ['rusage-utime', (userCPUTime / 1e6).toFixed(6)],
    ['rusage-stime', (systemCPUTime / 1e6).toFixed(6)],
    ['uptime', wholeSeconds(now - about.startedAt)],
    ['binlog-oldest-index', about.journal.oldest],
    ['binlog-current-index', about.journal.current],
    ['binlog-records-migrated', about.journal.migrated],
    ['binlog-records-written', about.journal.written],
    ['binlog-max-size', about.journal.segmentBytes],
    ['draining', String(about.isDraining)],
    ['id', about.id],
    ['hostname', hostname()],
    ['os', version()],
    ['platform', machine()],
  ])
}

export function formatTubeStats(tube: Tube, now: number): string {
  return formatPairs([
    ['name', tube.name],
    ['current-jobs-urgent', tube.urgent],
    ['current-jobs-ready', tube.ready.size],
    ['current-jobs-reserved', tube.reserved],
    ['current-jobs-delayed', tube.delayed.size],
    ['current-jobs-buried', tube.buried.size],
    ['total-jobs', tube.totalJobs],
    ['current-using', tube.using],
    ['current-watching', tube.watching],
    ['current-waiting', tube.waiting.size],
    ['cmd-delete', tube.deletes],
    ['cmd-pause-tube', tube.pauses],
    ['pause', tube.pauseSeconds],
    ['pause-time-left', tube.isPaused ? wholeSeconds(tube.pausedUntil - now) : 0],
  ])
}

export function formatJobStats(job: Job, now: number): string {
  const hasDeadline = job.state === 'reserved' || job.state === 'delayed'
  return formatPairs([
    ['id', job.id],
    ['tube', job.tube.name],
    ['state', job.state],
    ['pri', job.priority],
    ['age', wholeSeconds(now - job.createdAt)],
    ['delay', job.delaySeconds],
    ['ttr', job.ttrSeconds],
    ['time-left', hasDeadline ? wholeSeconds(job.deadlineAt - now) : 0],
    ['file', job.segment],
    ['reserves', job.reserves],
    ['timeouts', job.timeouts],
    ['releases', job.releases],
    ['buries', job.buries],
    ['kicks', job.kicks],
  ])
}

function wholeSeconds(ms: number): number {
  return Math.max(0, Math.trunc(ms / 1000))
}
