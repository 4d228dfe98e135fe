/**
 * Servers to compare with, one in a process. Says `ready PORT`.
 *
 *     node http-server.js fixed FILE         one body, and nothing is asked
 *     node http-server.js sirv DIR           files known from the start, headers made before
 *     node http-server.js sirv-dev DIR       files looked for with each request
 *     node http-server.js probe              says `ready` when sirv is installed
 */

import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'

const [kind, path] = process.argv.slice(2)

async function makeHandler() {
  switch (kind) {
    case 'fixed': {
      const body = readFileSync(path)
      const headers = { 'Content-Type': 'application/json; charset=utf-8', 'Content-Length': body.length }
      return (_request, response) => response.writeHead(200, headers).end(body)
    }
    case 'sirv':
    case 'sirv-dev': {
      const { default: sirv } = await import('sirv')
      return sirv(path, { dev: kind === 'sirv-dev', etag: true })
    }
    case 'probe':
      await import('sirv')
      return undefined
    default:
      console.error('usage: http-server.js fixed FILE | sirv DIR | sirv-dev DIR | probe')
      return process.exit(64)
  }
}

const handler = await makeHandler()
if (handler === undefined) console.log('ready')
else {
  const server = createServer(handler).listen(0, '127.0.0.1', () => console.log(`ready ${server.address().port}`))
}
