/** The broker of a benchmark, and a raw client of it. */

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import {
  ENVIRONMENT,
  findProgram,
  freePort,
  makeFolder,
  PROJECT,
  startProcess,
  stopProcess,
  until,
} from './children.js'

export const brokerKind = () => (findProgram('beanstalkd') === undefined ? 'embedded' : 'beanstalkd')

/** beanstalkd where it is installed, else the embedded broker, in a process of its own. */
export async function startBroker() {
  const port = await freePort()
  const child =
    brokerKind() === 'beanstalkd'
      ? startProcess('beanstalkd', ['-l', '127.0.0.1', '-p', String(port)])
      : startProcess(process.execPath, [join(PROJECT, 'bin', 'qworker'), 'broker', '-p', String(port)], {
          env: { ...ENVIRONMENT, RESULT_BASEDIR: makeFolder('broker') },
        })
  const client = await until('the broker answers', () => openClient(port).catch(() => undefined), { child })
  return {
    port,
    client,
    async stop() {
      client.close()
      await stopProcess(child)
    },
  }
}

export const newUuid = () => randomBytes(16).toString('hex')

export const putCommand = (body, ttr = 60) => `put 1337 0 ${ttr} ${Buffer.byteLength(body)}\r\n${body}\r\n`

/** Commands one after the other; each answers with its reply, a statistic with its numbers. */
async function openClient(port) {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  let text = ''
  let wanted
  let finish
  socket.on('data', (chunk) => {
    text += chunk.latin1Slice()
    if (finish === undefined || !wanted(text)) return
    const done = finish
    finish = undefined
    done(text)
  })
  socket.on('error', () => undefined)
  socket.on('close', () => finish?.('closed'))
  const ask = (command, isWhole = (reply) => reply.endsWith('\r\n')) =>
    new Promise((done, fail) => {
      if (socket.destroyed) return fail(new Error('the broker has closed the connection'))
      text = ''
      wanted = isWhole
      finish = (reply) => (reply === 'closed' ? fail(new Error('the broker has closed the connection')) : done(reply))
      socket.write(command)
    })
  const askStats = async (command) => {
    const reply = await ask(command, (soFar) => /^NOT_FOUND\r\n|\n\r\n$/.test(soFar))
    return Object.fromEntries([...reply.matchAll(/^([\w-]+): (\d+)$/gm)].map(([, key, value]) => [key, Number(value)]))
  }
  return {
    ask,
    stats: () => askStats('stats\r\n'),
    tubeStats: (tube) => askStats(`stats-tube ${tube}\r\n`),
    pauseTube: (tube, seconds) => ask(`pause-tube ${tube} ${seconds}\r\n`),
    use: (tube) => ask(`use ${tube}\r\n`),
    /** All at once; the number that was accepted. */
    async put(bodies, ttr) {
      let lines = 0
      let seen = 0
      const isWhole = (reply) => {
        for (let at = reply.indexOf('\n', seen); at >= 0; at = reply.indexOf('\n', seen)) {
          lines++
          seen = at + 1
        }
        return lines === bodies.length
      }
      const reply = await ask(bodies.map((body) => putCommand(body, ttr)).join(''), isWhole)
      return reply.split('INSERTED').length - 1
    },
    close: () => socket.destroy(),
  }
}
