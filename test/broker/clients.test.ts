import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { expect, it, onTestFinished } from 'vitest'
import { startBroker } from '../../src/broker/broker.ts'

it('serves clients that other people wrote', async (context) => {
  const broker = await startBroker({ host: '127.0.0.1', port: 0, maxJobBytes: 65535, fsync: 'interval' })
  onTestFinished(() => broker.close())
  const child = spawn(process.execPath, [join(import.meta.dirname, 'clients.js'), String(broker.port)])
  onTestFinished(() => void child.kill('SIGKILL'))
  const [said, complained] = await Promise.all([buffer(child.stdout), buffer(child.stderr), once(child, 'exit')])
  if (complained.includes('ERR_MODULE_NOT_FOUND'))
    context.skip('the npm packages beanstalkd and jackd are not installed')
  expect(String(said), String(complained)).toBe('ok\n')
})
