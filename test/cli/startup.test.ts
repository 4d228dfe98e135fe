import { connect } from 'node:net'
import { expect, test } from 'vitest'
import { shareFiles } from '../../src/cli/startup.ts'
import { startResultServer } from '../../src/http/server.ts'
import { openLocalStore } from '../../src/store/store.ts'

const limits = (files: string) =>
  `Limit Soft Hard Units\nMax processes 9 9 processes\nMax open files            ${files}\n`

test('the clients of the HTTP server leave the jobs their files', () => {
  expect(shareFiles(4, 'http', limits('1024                 524288               files')).http).toBe(
    (1024 - 64 - 104) / 2,
  )
  expect(shareFiles(64, 'http', limits('1024  524288  files')).http).toBe(8)
  expect(shareFiles(1, 'http', limits('20000  20000  files')).http).toBeGreaterThan(512)
  for (const unknown of [limits('unlimited  unlimited  files'), '', undefined])
    expect(shareFiles(4, 'http', unknown ?? '').http).toBeUndefined()
  const both = shareFiles(4, 'both', limits('1024  524288  files'))
  expect(both).toEqual({ http: (1024 - 64 - 104) / 4, broker: (1024 - 64 - 104) / 2 })
  if (process.platform === 'linux') expect(shareFiles(1, 'http').http).toBeGreaterThanOrEqual(8)
})

test('one client more than may be is turned away, the others are answered', async () => {
  const store = await openLocalStore('/nowhere')
  const server = await startResultServer({
    store,
    host: '127.0.0.1',
    port: 0,
    maxConnections: 2,
    running: () => undefined,
    health: () => ({ status: 'ok' }),
  })
  const open = () =>
    new Promise<{ answered: boolean; end: () => void }>((resolve) => {
      const socket = connect(server.port, '127.0.0.1', () => socket.write('GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n'))
      socket.once('data', () => resolve({ answered: true, end: () => socket.destroy() }))
      socket.on('error', () => undefined)
      socket.once('close', () => resolve({ answered: false, end: () => undefined }))
    })
  const clients = [await open(), await open(), await open()]
  expect(clients.map(({ answered }) => answered)).toEqual([true, true, false])
  for (const client of clients) client.end()
  await server.close()
})
