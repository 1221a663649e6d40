// Prints the results of the audit of graphql-http as JSON.
// usage: node graphql_http.mjs FOLDER_OF_NODE_MODULES URL
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, url] = process.argv.slice(2);
const require = createRequire(pathToFileURL(folder + '/'));
const { auditServer } = require('graphql-http');
const results = await auditServer({ url });
console.log(JSON.stringify(results.map(({ id, name, status, reason }) => ({ id, name, status, reason }))));
