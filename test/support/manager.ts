/** Stands in for systemd. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished, type TestContext } from 'vitest'
import { leaveOut, PROJECT, until } from './installation.ts'

const missing = ['systemd-notify', 'perl'].filter((tool) => spawnSync(tool, ['--version']).error !== undefined)

export function needTools(context: TestContext): void {
  if (missing.length > 0) leaveOut(context, `notes to systemd: there is no ${missing.join(', no ')} here`)
}

export interface Manager {
  readonly socket: string
  /** what came, without the barriers that systemd-notify sends after each */
  readonly heard: string[]
  readonly raw: string[]
}

/** A datagram socket that somebody else's process reads. */
export async function startManager(socket?: string, ...more: string[]): Promise<Manager> {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-notify-'))
  const name = socket ?? join(dir, 'socket')
  const child: ChildProcess = spawn('perl', [join(PROJECT, 'test/cli/datagrams.pl'), name, ...more], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const exited = once(child, 'exit')
  onTestFinished(async () => {
    child.kill('SIGKILL')
    await exited
    rmSync(dir, { recursive: true })
  })
  const lines: string[] = []
  const manager = { socket: name, heard: [] as string[], raw: lines }
  let partial = ''
  child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
    const parts = (partial + chunk).split('\n')
    partial = parts.pop() ?? ''
    lines.push(...parts)
    manager.heard.push(...parts.filter((line) => line !== 'bound' && line !== 'BARRIER=1'))
  })
  await until('the socket is bound', () => lines.includes('bound'))
  return manager
}
