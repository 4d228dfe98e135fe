import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { install, until } from '../support/installation.ts'

const SIGNALS = ['SIGTERM', 'SIGINT'] as const

test.each(SIGNALS)('%s while the installation is checked ends the worker with 0', async (signal) => {
  const home = await install()
  home.addAlgorithm('job', 'echo 1')
  // A broker that says nothing: the check waits for it.
  const sockets: Socket[] = []
  const silent = createServer((socket) => void sockets.push(socket)).listen(0, '127.0.0.1')
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy()
    silent.close()
  })
  await once(silent, 'listening')
  const { port } = silent.address() as AddressInfo
  const worker = await home.startWorker({ BEANSTALK_PORT: String(port), LOG_FORMAT: 'text' })
  await until('its question', () => sockets.length > 0)
  worker.child.kill(signal)
  expect(await worker.exited).toEqual([0, null])
  expect(worker.said.stderr).toBe('')
})

test.each(SIGNALS)(
  '%s while a dead worker is accounted for closes all, takes no job, and ends with 0',
  async (signal) => {
    const home = await install()
    home.addAlgorithm('job', 'echo 1')
    home.addAlgorithm('waits', 'sleep 300')
    const dead = await home.startWorker()
    await home.putJob('waits', {}, { ttr: 600 })
    await dead.waitFor('the run', ({ event }) => event === 'run_started')
    dead.child.kill('SIGKILL')
    await dead.exited
    const ticket = await home.put(JSON.stringify([{ uuid: 'a'.repeat(32), type: 'job' }, {}]))
    // The accounting looks again and again: it takes half a second at least.
    const work = join(home.results, '.work')
    const worker = await home.startWorker({ LOG_FORMAT: 'text' })
    await until('its folder', () => readdirSync(work).some((name) => name.startsWith(`w${worker.pid}-`)))
    worker.child.kill(signal)
    expect(await worker.exited).toEqual([0, null])
    expect(worker.said.stderr).toBe('')
    expect(readdirSync(work)).toEqual([])
    expect(await home.ticketState(ticket)).toBe('ready')
  },
)
