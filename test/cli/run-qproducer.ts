/** Runs the real `bin/qproducer` for tests. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { TestBroker } from '../support/broker.ts'

const BIN = fileURLToPath(new URL('../../bin/qproducer', import.meta.url))

export interface Run {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

export interface RunOptions {
  readonly env?: Record<string, string>
  /** what stands on stdin; nothing when absent */
  readonly stdin?: string | Buffer
}

export function startQproducer(broker: TestBroker | undefined, args: readonly string[], options: RunOptions = {}) {
  const env = {
    PATH: '/usr/local/bin:/usr/bin:/bin',
    ...(broker && { BEANSTALK_SERVER: broker.host, BEANSTALK_PORT: String(broker.port) }),
    ...options.env,
  }
  const child = spawn(process.execPath, [BIN, ...args], { env, stdio: ['pipe', 'pipe', 'pipe'] })
  child.stdin.on('error', () => undefined)
  child.stdin.end(options.stdin ?? '')
  const text = { stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text.stdout += chunk
  })
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    text.stderr += chunk
  })
  const ended = once(child, 'close').then(([code]): Run => ({ code: code as number | null, ...text }))
  return { child, ended, text }
}

export function runQproducer(
  broker: TestBroker | undefined,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Run> {
  return startQproducer(broker, args, options).ended
}
