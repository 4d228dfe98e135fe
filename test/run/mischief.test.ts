import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { runAlgorithm } from '../../src/run/run.ts'
import { getMischief, listMischiefs, type MischiefName } from '../../src/sailor/mischief.ts'
import { findLeftovers, makeRequest, openGround, PROJECT, until } from './ground.ts'

/** Runs one mischief; once it has said that it is at work, a mischief that does not end by itself is interrupted. */
async function runMischief(name: MischiefName) {
  const ground = openGround()
  const abort = new AbortController()
  const request = await makeRequest(ground, {
    manifest: {
      command: ['{node}', join(PROJECT, 'bin/drunken-sailor'), '-s', '0', '-v', '--megabytes', '4', '--outcome', name],
      output: name === 'half-json' ? 'json' : 'auto',
    },
    signal: abort.signal,
    maxOutputBytes: 1_000_000,
    maxScratchBytes: 20_000_000,
  })
  const mischief = getMischief(name)
  const running = runAlgorithm(request)
  if (mischief.end.kind === 'killed' && !name.startsWith('floods')) {
    const { stdout } = request.workdir
    await until(mischief.line, () => existsSync(stdout) && readFileSync(stdout, 'utf8').includes(mischief.line))
    abort.abort({ kind: 'interrupted' })
  }
  const report = await running
  return { name, mischief, report, left: findLeftovers(ground) }
}

const names = listMischiefs(true)
const groups = Array.from({ length: Math.ceil(names.length / 6) }, (_, i) => names.slice(6 * i, 6 * i + 6))

test.each(groups)('of no mischief a process is left: %s %s %s %s %s %s', async (...group) => {
  for (const { name, mischief, report, left } of await Promise.all(group.filter(Boolean).map(runMischief))) {
    expect(left, name).toEqual([])
    expect(report.kill?.survivors ?? [], name).toEqual([])
    const { end } = mischief
    const signals = report.kill?.signals.map(({ signal }) => signal) ?? []
    if (end.kind === 'exits') expect(report.exitCode, name).toBe(end.code)
    if (end.kind === 'dies') expect(report.outcome, name).toEqual({ kind: 'signalled', signal: end.signal })
    if (end.kind !== 'killed') expect(signals, name).toEqual(mischief.leavesProcess ? ['SIGKILL'] : [])
    // Helpers are started after the line is printed: one that is born during SIGTERM meets SIGKILL.
    else if (name !== 'stops-itself' && !mischief.leavesProcess) expect(signals.at(-1), name).toBe(end.by)
    if (name.startsWith('floods')) expect(report.outcome.kind, name).toBe('output_exceeded')
    if (name === 'half-json') expect(report.outcome.kind).toBe('output_invalid')
    if (name === 'leaves-files') {
      expect(report.outputs.map((output) => output.name)).toEqual(['data.csv', 'report.txt'])
      expect(report.skipped.map((file) => file.name)).toEqual(['fifo', 'passwd', 'result.json', 'two?lines.txt'])
    }
  }
})
