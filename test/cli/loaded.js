// Imported before a program: writes the address of each module that it loads to the file LOADED, one a line.
import { appendFileSync } from 'node:fs'
import { createRequire, register } from 'node:module'

const hook = `import { appendFileSync } from 'node:fs'
export async function load(url, context, next) {
  appendFileSync(${JSON.stringify(process.env.LOADED)}, url + '\\n')
  return next(url, context)
}`
register(`data:text/javascript,${encodeURIComponent(hook)}`)
process.on('exit', () => {
  for (const path of Object.keys(createRequire(import.meta.url).cache)) appendFileSync(process.env.LOADED, `${path}\n`)
})
