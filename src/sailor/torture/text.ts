/** What a torture found, as text for people. Pure. */

import type { Progress, TortureReport } from './torture.ts'
import { BAD_ROWS, type BadRow } from './verdict.ts'

const SHOWN_FINDINGS = 5
const SHOWN_LINE = 240

export function makeProgressLine(progress: Progress): string {
  const { phase, seconds, ofSeconds, put, open, complete, buried, faults, workers, lateKills } = progress
  return `${phase} ${seconds} of ${ofSeconds} s: put ${put}, open ${open}, complete ${complete}, buried ${buried}, faults ${faults}, workers ${workers}, late kills ${lateKills}\n`
}

export function makeVerdictText(report: TortureReport): string {
  const { verdict } = report
  const rows: [string, string | number][] = [
    ['seed', report.seed],
    ['time', `${report.minutes} min of torture, ${report.seconds} s in all`],
    ['faults', listFaults(report)],
    ['workers', `${report.workersStarted} started`],
    ['runs', `${report.runs}; the latest was alive ${report.latestSeconds} s beyond TTR + GRACE_TIME`],
    ['accepted', verdict.accepted],
    ['no answer to put', verdict.unknown],
    ['complete', verdict.complete],
    ['buried with reason', verdict.buried],
    ...badRows(report).map(([row, label]): [string, number] => [label, verdict.bad[row].length]),
  ]
  const width = Math.max(...rows.map(([label]) => label.length))
  const table = rows.map(([label, value]) => `${label.padEnd(width)}  ${value}`)
  const notes = report.notes.map((note) => `note: ${note}`)
  return `${[...table, ...notes, ...makeFindings(report), makeVerdictLine(report)].join('\n')}\n`
}

function badRows({ verdict }: TortureReport): [BadRow, string][] {
  return (Object.keys(verdict.bad) as BadRow[]).map((row) => [row, BAD_ROWS[row]])
}

function listFaults({ faults, s3Faults }: TortureReport): string {
  const kinds = Object.entries(faults).map(([kind, count]) => `${kind} ${count}`)
  const total = Object.values(faults).reduce((sum, count) => sum + count, 0)
  return `${total}: ${kinds.join(', ')}${s3Faults > 0 ? `; ${s3Faults} requests to S3 met one` : ''}`
}

function makeFindings(report: TortureReport): string[] {
  const lines: string[] = []
  for (const [row, label] of badRows(report)) {
    const findings = report.verdict.bad[row]
    for (const { id, detail } of findings.slice(0, SHOWN_FINDINGS)) lines.push(`${label}: ${id}: ${detail}`)
    if (findings.length > SHOWN_FINDINGS)
      lines.push(`${label}: ... and ${findings.length - SHOWN_FINDINGS} more (--json has all)`)
  }
  for (const [id, log] of Object.entries(report.logs)) {
    lines.push(`last log lines of ${id}:`, ...log.map((line) => `  ${line.slice(0, SHOWN_LINE)}`))
  }
  return lines
}

function makeVerdictLine(report: TortureReport): string {
  if (report.verdict.clean) return 'verdict: clean'
  const bad = badRows(report).flatMap(([row, label]) => {
    const count = report.verdict.bad[row].length
    return count === 0 ? [] : [`${count} ${label}`]
  })
  return `verdict: ${bad.join(', ')}; look closer with --seed ${report.seed} --keep`
}
