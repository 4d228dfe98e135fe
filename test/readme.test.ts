import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { freePort } from './support/broker.ts'
import { PROJECT } from './support/installation.ts'

const README = readFileSync(join(PROJECT, 'README.md'), 'utf8')

/** A paragraph of commands, as somebody would take it; ended by its last one, which stays when it is a worker. */
function takeCommands(first: string): string {
  const paragraph = README.split('\n\n').find((text) => text.startsWith(`    ${first}`))
  const lines = paragraph?.split('\n').map((line) => line.trim()) ?? []
  return [...lines.slice(0, -1), lines.at(-1)?.replace(/^((?:\w+=\S+ )*)/, '$1 exec ')].join('\n')
}

test('an algorithm of your own runs as the README says, where nothing but Node is installed', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'qworker-readme-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true, maxRetries: 5 }))
  symlinkSync(join(PROJECT, 'bin'), join(dir, 'bin'))
  const env = {
    PATH: `${dirname(process.execPath)}:/usr/bin:/bin`,
    BEANSTALK_PORT: String(await freePort()),
    HTTP_PORT: String(await freePort()),
    RESULT_BASEDIR: dir,
    LOG_FORMAT: 'json',
  }
  const start = (commands: string) =>
    spawn('/bin/sh', ['-c', commands], { cwd: dir, env, stdio: ['ignore', 'pipe', 'pipe'] })
  const worker = start(takeCommands('mkdir -p mine/hello'))
  const ended = once(worker, 'exit')
  let said = ''
  await new Promise<void>((resolve) => {
    for (const stream of [worker.stdout, worker.stderr])
      stream.on('data', (chunk) => {
        said += chunk
        if (said.includes('"worker_ready"')) resolve()
      })
    void ended.then(() => resolve())
  })
  expect(said).toContain('"worker_ready"')
  const [, put = '', member = ''] = /Then `(bin\/qproducer .*)` has `(.*)` in its document/.exec(README) ?? []
  const producer = start(put)
  let document = ''
  producer.stdout.on('data', (chunk) => {
    document += chunk
  })
  const [code] = await once(producer, 'close')
  worker.kill('SIGTERM')
  expect(await ended).toEqual([0, null])
  expect(code).toBe(0)
  expect(document).toContain(member)
})
