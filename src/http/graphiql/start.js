const firstQuery = `# Write a query or a mutation here.
# Ctrl-Enter sends it, Ctrl-Space completes.
# The docs in the sidebar list everything.

{
  health { status storage }
  workflows { id name places }
}
`;

ReactDOM.createRoot(document.getElementById('graphiql')).render(
  React.createElement(GraphiQL, {
    fetcher: GraphiQL.createFetcher({ url: '/graphql' }),
    defaultQuery: firstQuery,
  }),
);
